"""The text expert."""

from __future__ import annotations

from torch import Tensor

from pad_dist.config import ModelConfig, TextExpertConfig
from pad_dist.data.batches import Rows, StepSize
from pad_dist.model.backbones.base import build_backbone
from pad_dist.model.experts.base import EXPERT_CLASSES, Expert, encoder_values
from pad_dist.model.projector import Projector


@EXPERT_CLASSES.register(TextExpertConfig)
class TextExpert(Expert):
    """Item vector = projected text."""

    def __init__(self, model: ModelConfig, text_dim: int) -> None:
        super().__init__(model, text_dim)
        self.encoder = build_backbone(model)
        self.projector = Projector(model, text_dim)

    def item_vectors(self, rows: Rows) -> Tensor:
        """[U, D] from `rows["text"]`."""
        vectors: Tensor = self.projector(rows["text"])
        return vectors

    @classmethod
    def activation_values(cls, model: ModelConfig, text_dim: int, step: StepSize) -> int:
        return encoder_values(model, step) + step.unique * Projector.activation_values(model)
