"""The ID expert."""

from __future__ import annotations

from torch import Tensor

from pad_dist.config import IdConfig, ModelConfig
from pad_dist.data.batches import Rows
from pad_dist.model.backbones.base import build_backbone
from pad_dist.model.experts.base import EXPERT_CLASSES, Expert


@EXPERT_CLASSES.register(IdConfig)
class IdExpert(Expert):
    """Item vector = row of the ID table."""

    def __init__(self, model: ModelConfig, text_dim: int) -> None:
        super().__init__(model, text_dim)
        self.encoder = build_backbone(model)

    def item_vectors(self, rows: Rows) -> Tensor:
        """[U, D] from `rows["id"]`."""
        return rows["id"]
