"""The section of a run config that shapes the dense model."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from pad_dist.config.backbones import BackboneConfig, LigrConfig, SasRecConfig
from pad_dist.config.base import Section
from pad_dist.config.experts import AlignedConfig, ItemKnnConfig


class ProjectorConfig(Section):
    """Network from text vectors to the model's width (docs/method.md, "Text")."""

    layers: int = Field(1, ge=1)
    """Number of hidden layers, `Linear(dim, dim)`, after the first `Linear(text_dim, dim)`."""
    activation: bool = False
    """Apply GELU after the last layer too, as the paper does."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout rate of the hidden layers. null takes that of the rest of the model, as the paper does."""


class ModelConfig(Section):
    """The dense model of every expert (docs/method.md, "Backbone" and "Text")."""

    backbone: BackboneConfig = SasRecConfig()
    """Sequence encoder of every expert that is trained."""
    dim: int = Field(128, ge=4)
    """Width of rows, item vectors and user vectors (model dimension)."""
    max_length: int = Field(20, ge=1)
    """Context length: number of last items that a backbone reads."""
    dropout: float = Field(0.3, ge=0, lt=1)
    """Dropout rate of all stages that set none of their own."""
    projector: ProjectorConfig = ProjectorConfig()
    """Network from text vectors to the model's width (aligned and text experts)."""
    aligned: AlignedConfig = AlignedConfig()
    """Aligned expert: rows of the aligned table fused with projected texts."""
    item_knn: ItemKnnConfig = ItemKnnConfig()
    """Item-kNN by content: an expert without weights, which compares texts."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        backbone = self.backbone
        if isinstance(backbone, SasRecConfig | LigrConfig) and self.dim % backbone.heads:
            raise ValueError(f"model.backbone.heads={backbone.heads} must divide model.dim={self.dim}")
        return self
