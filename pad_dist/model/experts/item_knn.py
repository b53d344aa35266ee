"""Item-kNN by content (docs/method.md, "What is ours")."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pad_dist.config import ItemKnnConfig, ModelConfig
from pad_dist.data.batches import Rows, StepSize
from pad_dist.model.backbones.jagged import Jagged
from pad_dist.model.experts.base import EXPERT_CLASSES, Expert


class RecencySum(nn.Module):
    """Sum over the items up to a position of decay^age times the item's vector, over the temperature.

    The item at the position has age 0. With unit vectors, <user, item> sums the item's cosines with the user's items,
    weighted by recency.
    """

    def __init__(self, config: ItemKnnConfig, max_length: int) -> None:
        super().__init__()
        self.max_length, self.decay, self.temperature = max_length, config.decay, config.temperature

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """[P, C] item vectors end to end, lengths [B] -> [P, C] user vectors; see `Backbone.forward`."""
        jagged = Jagged(lengths, len(vectors), self.max_length)
        places = torch.arange(self.max_length, device=vectors.device)
        ages = places[:, None] - places
        weights = torch.where(ages >= 0, self.decay ** ages.clamp(min=0).double(), 0.0) / self.temperature
        return jagged.unpadded(weights.to(vectors.dtype) @ jagged.padded(vectors))


@EXPERT_CLASSES.register(ItemKnnConfig)
class ItemKnnExpert(Expert):
    """Item vector = text vector at length 1, user vector = `RecencySum` of them: nothing is learned."""

    def __init__(self, model: ModelConfig, text_dim: int) -> None:
        super().__init__(model, text_dim)
        self.encoder = RecencySum(model.item_knn, model.max_length)

    def item_vectors(self, rows: Rows) -> Tensor:
        """[U, text_dim] from `rows["text"]`; zeros for an item without a text."""
        return F.normalize(rows["text"], dim=1)

    @classmethod
    def width(cls, model: ModelConfig, text_dim: int) -> int:
        return text_dim

    @classmethod
    def activation_values(cls, model: ModelConfig, text_dim: int, step: StepSize) -> int:
        """Item vectors by position, in a grid, summed in it and cut out of it; and the unit vectors of the items."""
        return (4 * step.positions + step.unique) * text_dim
