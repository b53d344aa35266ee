"""Networks that RLMRec trains with the experts; no score depends on them (docs/method.md, "Baselines")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pad_dist.model.initial import initialise


class Mask(nn.Module):
    """A learned token that replaces item vectors."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, dim))
        nn.init.xavier_normal_(self.token)

    def forward(self, vectors: Tensor, masked: Tensor) -> Tensor:
        """[U, D] vectors; the token replaces those where `masked` [U] is true."""
        return torch.where(masked.unsqueeze(1), self.token, vectors)


class Head(nn.Module):
    """Linear, LeakyReLU, Linear; the width between is the mean of the two ends'."""

    def __init__(self, from_dim: int, to_dim: int, mask_dim: int = 0) -> None:
        """`mask_dim`, if not 0, is the width of a token that the encoder reads in place of masked items."""
        super().__init__()
        between = (from_dim + to_dim) // 2
        self.mlp = nn.Sequential(nn.Linear(from_dim, between), nn.LeakyReLU(), nn.Linear(between, to_dim))
        self.mask = Mask(mask_dim) if mask_dim else None
        self.apply(initialise)

    def forward(self, vectors: Tensor) -> Tensor:
        """[n, from_dim] -> [n, to_dim]."""
        output: Tensor = self.mlp(vectors)
        return output
