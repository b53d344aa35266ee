"""The aligned expert (docs/method.md, "Phase 2: align")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pad_dist.config import AlignedConfig, ModelConfig
from pad_dist.data.batches import Rows, StepSize
from pad_dist.model.backbones.base import build_backbone
from pad_dist.model.experts.base import EXPERT_CLASSES, Expert, encoder_values
from pad_dist.model.projector import Projector


@EXPERT_CLASSES.register(AlignedConfig)
class AlignedExpert(Expert):
    """Item vector = fusion of a row of the aligned table with projected text."""

    def __init__(self, model: ModelConfig, text_dim: int) -> None:
        super().__init__(model, text_dim)
        self.encoder = build_backbone(model)
        self.projector = Projector(model, text_dim)
        self.id_dropout = model.aligned.id_dropout
        self.fusion = (
            nn.Sequential(nn.Dropout(model.dropout), nn.Linear(2 * model.dim, model.dim), nn.GELU())
            if model.aligned.fusion == "concat"
            else None
        )

    def sides(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """The two sides of an alignment: projected text t and row e, [U, D] each."""
        return self.projector(rows["text"]), rows["aligned"]

    def fuse(self, text: Tensor, row: Tensor) -> Tensor:
        """[U, D] item vectors from both sides; ID dropout zeroes rows of items, without rescaling the others."""
        if self.training and self.id_dropout:
            row = row * (torch.rand(len(row), 1, device=row.device) >= self.id_dropout)
        if self.fusion is None:
            return row + text
        vectors: Tensor = self.fusion(torch.cat([row, text], dim=1))
        return vectors

    def item_vectors(self, rows: Rows) -> Tensor:
        """[U, D] from `rows["aligned"]` and `rows["text"]`."""
        return self.fuse(*self.sides(rows))

    @classmethod
    def activation_values(cls, model: ModelConfig, text_dim: int, step: StepSize) -> int:
        return encoder_values(model, step) + step.unique * Projector.activation_values(model)
