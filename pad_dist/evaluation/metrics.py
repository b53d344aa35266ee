"""hr@10 and ndcg@10 from ranks, overall, for cold targets and per frequency bin (METHOD, evaluation)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

K = 10
BINS = 10


def metric_sums(ranks: Tensor, frequency: Tensor, bins: Tensor, cold_max_frequency: int) -> Tensor:
    """Additive sums over users, so that any batching and any number of ranks give the same metrics.

    Args:
        ranks: [n] rank of each user's target, from 1.
        frequency: [n] train frequency of the target.
        bins: [n] frequency bin of the target, 1 to 10.
        cold_max_frequency: targets of at most this train frequency are cold.

    Returns:
        [12, 3] float64: users, hits and discounted gains of all users, of the cold
        ones and of bins 1 to 10.
    """
    hit = (ranks <= K).double()
    values = torch.stack([torch.ones_like(hit), hit, hit / torch.log2(ranks.double() + 1)], dim=1)
    slices = [torch.ones_like(hit), (frequency <= cold_max_frequency).double()]
    slices += [(bins == index).double() for index in range(1, BINS + 1)]
    return torch.stack(slices) @ values


def summarize(sums: Tensor) -> dict[str, Any]:
    """The metrics of DESIGN's report from `metric_sums`; a slice without users has 0 in every field."""
    overall, cold, *bins = (_means(row) for row in sums.tolist())
    return {**overall, "cold": cold, "by_bin": [{"bin": index, **means} for index, means in enumerate(bins, 1)]}


def ranking_metrics(ranks: Tensor, frequency: Tensor, bins: Tensor, cold_max_frequency: int) -> dict[str, Any]:
    """`summarize` of `metric_sums`: the metrics of users that are all at hand."""
    return summarize(metric_sums(ranks, frequency, bins, cold_max_frequency))


def _means(row: list[float]) -> dict[str, Any]:
    users, hits, gain = row
    return {f"hr@{K}": hits / max(users, 1), f"ndcg@{K}": gain / max(users, 1), "users": int(users)}
