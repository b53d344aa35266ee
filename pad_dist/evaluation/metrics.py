"""hr@10 and ndcg@10 from target ranks: overall, for cold targets, per frequency bin (docs/method.md, "Evaluation")."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pad_dist.model.gate import BINS

K = 10
GAINS = [1 / math.log2(rank + 1) for rank in range(1, K + 1)]
COUNTS_SHAPE = (BINS + 1, K + 1)
"""All users, the cold ones and bins 1 to 10, by rank 1 to 10 and later."""


def rank_counts(ranks: Tensor, frequency: Tensor, bins: Tensor, cold_max_frequency: int) -> Tensor:
    """Users by slice and rank: whole numbers, so sums of batches are exact in any order.

    Args:
        ranks: [n] rank of each user's target, from 1.
        frequency: [n] train frequency of the target.
        bins: [n] frequency bin of the target, 1 to 10.
        cold_max_frequency: targets of at most this train frequency are cold.

    Returns:
        [12, 11] float64: of all users, of the cold ones and of bins 1 to 10, how many
        have rank 1 to 10 and, last, how many a later one.
    """
    slices = [torch.ones_like(bins), frequency <= cold_max_frequency, *(bins == index for index in range(1, BINS))]
    by_rank = F.one_hot(ranks.clamp(max=K + 1) - 1, K + 1)
    return torch.stack([users.double() for users in slices]) @ by_rank.double()


def summarize(counts: Tensor) -> dict[str, Any]:
    """The metrics of a report from summed `rank_counts`; a slice without users has 0 in every field."""
    overall, cold, *bins = (_means(row) for row in counts.tolist())
    return {**overall, "cold": cold, "by_bin": [{"bin": index, **means} for index, means in enumerate(bins, 1)]}


def _means(row: list[float]) -> dict[str, Any]:
    users, hits = sum(row), sum(row[:K])
    gain = sum(count * value for count, value in zip(row, GAINS, strict=False))
    return {f"hr@{K}": hits / max(users, 1), f"ndcg@{K}": gain / max(users, 1), "users": int(users)}
