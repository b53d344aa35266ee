"""A user as the sum of the last items, without weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pad_dist.config import NeighboursConfig
from pad_dist.model.jagged import Jagged


class RecencySum(nn.Module):
    """Sum over a position's items of decay^age times the item's vector, over the temperature; the position's age is 0.

    With unit vectors of items, <user, item> is the sum of their cosines with the user's items, recent ones first: a
    nearest-neighbour recommender.
    """

    def __init__(self, config: NeighboursConfig, max_length: int) -> None:
        super().__init__()
        self.max_length, self.decay, self.temperature = max_length, config.decay, config.temperature

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """[P, C] item vectors end to end, lengths [B] -> [P, C] user vectors; see `build_encoder`."""
        jagged = Jagged(lengths, len(vectors), self.max_length)
        places = torch.arange(self.max_length, device=vectors.device)
        ages = places[:, None] - places
        weights = torch.where(ages >= 0, self.decay ** ages.clamp(min=0).double(), 0.0) / self.temperature
        return jagged.unpadded(weights.to(vectors.dtype) @ jagged.padded(vectors))
