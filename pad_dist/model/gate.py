"""Gates: how much each expert counts for a candidate item, by its frequency in training (docs/method.md,
"Phase 3: disentangle" and "What is ours")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pad_dist.config import EXPERTS, ExpertName
from pad_dist.data.batches import Rows

BINS = 11
"""Bin 0 is padding, 1 the most popular items, 10 the rare and the unseen."""


class Gate(nn.Module):
    """Weights of the named experts from the item's frequency bin (the paper's).

    Logits start on the paper's ramps, or all at 0 ("even": all experts alike). With `scaled` one learned factor
    multiplies all weights. It changes no order of items, but lets a mixture of log-probabilities sharpen or flatten.
    """

    def __init__(self, experts: Sequence[ExpertName], init: Literal["ramps", "even"], scaled: bool = False) -> None:
        super().__init__()
        ramps = torch.stack([torch.linspace(*EXPERTS[name].gate_ramp, BINS) for name in experts], dim=1)
        self.logits = nn.Parameter(ramps if init == "ramps" else torch.zeros_like(ramps))
        self.log_scale = nn.Parameter(torch.zeros(1)) if scaled else None  # DeepSpeed fails on a scalar

    def forward(self, rows: Rows) -> tuple[Tensor, None]:
        """`rows["bin"]` [U] -> weights [U, M] in the order of the experts; each row sums to 1, or to the scale."""
        openings = torch.sigmoid(F.embedding(rows["bin"], self.logits))
        weights = openings / openings.sum(dim=1, keepdim=True)
        return weights if self.log_scale is None else weights * self.log_scale.exp(), None


class SmoothGate(nn.Module):
    """Weights of M experts, and a lift of the item, from its rarity r = 1 / (1 + ln(1 + f)), f its train frequency.

    r is 1 for an unseen item, .36 at f = 5 and .15 at f = 300. The weights are the softmax of logits affine in r. The
    lift is proportional to r: all experts score rare items low, by about the same amount for all users.
    """

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(experts))
        self.slope = nn.Parameter(torch.zeros(experts))
        self.lift = nn.Parameter(torch.zeros(1))

    def forward(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """`rows["frequency"]` [U] -> weights [U, M], each row sums to 1, and lifts [U, 1]."""
        rarity = rarity_of(rows["frequency"]).unsqueeze(1).to(self.level.dtype)
        return torch.softmax(self.level + self.slope * rarity, dim=1), self.lift * rarity


def rarity_of(frequency: Tensor) -> Tensor:
    """1 / (1 + ln(1 + f)), see `SmoothGate`."""
    return 1 / (1 + torch.log1p(frequency.float()))
