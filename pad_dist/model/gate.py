"""The frequency gate: how much each expert counts for an item (METHOD, phase 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pad_dist.config import ExpertName

BINS = 11
"""Bin 0 is padding, 1 the most popular items, 10 the rare and the unseen."""

_FIRST_AND_LAST_LOGIT: dict[ExpertName, tuple[float, float]] = {
    "id": (1.0, 0.0),
    "aligned": (-4.0, -5.0),
    "text": (0.0, 1.0),
}


class Gate(nn.Module):
    """Weights of the named experts from the candidate item's frequency bin.

    Logits start on the paper's ramps, or all at 0 ("even": all experts alike). With `scaled` there is a learned factor
    over all weights: no order of items changes, but a mixture of log-probabilities becomes as sharp as its loss wants.
    """

    def __init__(self, experts: Sequence[ExpertName], init: Literal["ramps", "even"], scaled: bool = False) -> None:
        super().__init__()
        ramps = torch.stack([torch.linspace(*_FIRST_AND_LAST_LOGIT[name], BINS) for name in experts], dim=1)
        self.logits = nn.Parameter(ramps if init == "ramps" else torch.zeros_like(ramps))
        self.log_scale = nn.Parameter(torch.zeros(1)) if scaled else None  # of no dimension, DeepSpeed fails

    def forward(self, bins: Tensor) -> Tensor:
        """[U] bins -> [U, M] weights in the order of the experts; each row sums to 1, or to the learned scale."""
        openings = torch.sigmoid(F.embedding(bins, self.logits))
        weights = openings / openings.sum(dim=1, keepdim=True)
        return weights if self.log_scale is None else weights * self.log_scale.exp()
