"""What RLMRec learns with beside the experts; no score depends on it (arXiv 2310.15950; METHOD, baselines)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from pad_dist.config import ModelConfig

HeadName = Literal["rlmrec_con", "rlmrec_gen"]


class Mask(nn.Module):
    """A learned token in the place of item vectors."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, dim))
        nn.init.xavier_normal_(self.token)

    def forward(self, vectors: Tensor, masked: Tensor) -> Tensor:
        """[U, D] vectors, those where `masked` [U] is true replaced."""
        return torch.where(masked.unsqueeze(1), self.token, vectors)


class Head(nn.Module):
    """Linear, LeakyReLU, Linear; the width between is the mean of the two ends'.

    `rlmrec_con`: from text to the model's width. `rlmrec_gen`: from user vectors to the text's, and the mask.
    """

    def __init__(self, name: HeadName, config: ModelConfig, text_dim: int) -> None:
        super().__init__()
        ends = (text_dim, config.dim) if name == "rlmrec_con" else (config.dim, text_dim)
        between = (text_dim + config.dim) // 2
        self.mlp = nn.Sequential(nn.Linear(ends[0], between), nn.LeakyReLU(), nn.Linear(between, ends[1]))
        self.mask = Mask(config.dim) if name == "rlmrec_gen" else None

    def forward(self, vectors: Tensor) -> Tensor:
        """[n, from] -> [n, to]."""
        found: Tensor = self.mlp(vectors)
        return found
