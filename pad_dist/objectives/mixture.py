"""What a mixture of experts learns with besides a recommendation loss: ApproxNDCG, and log-partitions of experts."""

from __future__ import annotations

import torch
from torch import Tensor

from pad_dist.config import NegativeSampling
from pad_dist.data.batches import Batch, Rows
from pad_dist.objectives.losses.base import shared_logits

NDCG_BYTES = 4 * 4 + 1
"""Most bytes in memory per logit in `approx_ndcg_sum`."""
PARTITION_BYTES = 3 * 4 + 1
"""Most bytes in memory per logit in `log_partition`."""


def expected_counts(config: NegativeSampling, catalogue: int, batch: Batch, rows: Rows) -> Tensor | None:
    """[U] expected count of each item among the negatives, for log-Q correction; None if the loss does not correct.

    Args:
        catalogue: number of items that negatives are drawn from.
        rows: with "share" [U], each item's share of the train interactions.
    """
    if not config.corrects_log_q:
        return None
    uniform = config.uniform(catalogue)
    return uniform / catalogue + (len(batch.negatives) - uniform) * rows["share"]


def uniform_counts(catalogue: int, batch: Batch) -> Tensor:
    """[U] expected count of each item among negatives that are all uniform."""
    drawn = min(len(batch.negatives), catalogue) / catalogue
    return torch.full((len(batch.items),), drawn, device=batch.items.device)


def approx_ndcg_sum(
    users: Tensor, items: Tensor, batch: Batch, expected: Tensor, temperature: float, weights: Tensor | None = None
) -> Tensor:
    """Sum over positions of weight * (1 - ndcg), with a smooth ndcg of the target (ApproxNDCG, Qin, Liu & Li 2010).

    There is one relevant item, so ndcg = 1 / log2(1 + target rank). The target rank is 1 + the sum over the other items
    of sigmoid((score - the target's) / temperature). K shared negatives estimate this sum; the catalogue as negatives
    gives it exactly. The items of the user's history count too, which the ndcg of an evaluation leaves out.

    Args:
        users: [P, D].
        items: [U, D] vectors of `batch.items`.
        batch: with negatives [K].
        expected: [U] expected count of each item among the negatives.
        weights: [P]; None: all 1.

    Returns:
        [] fp32 (fp64 if the vectors are).
    """
    target, logits, hits = shared_logits(users, items, batch)
    above = torch.sigmoid((logits - target.unsqueeze(1)) / temperature).masked_fill(hits, 0)
    target_ranks = 1 + above @ (1 / expected.index_select(0, batch.negatives)).to(above.dtype)
    losses = 1 - 1 / torch.log2(1 + target_ranks)
    return (losses if weights is None else losses * weights).sum()


def log_partition(users: Tensor, items: Tensor, batch: Batch, expected: Tensor | None) -> Tensor:
    """[P] log of the sum of exp <user, item> over the catalogue, estimated from the target and K shared negatives.

    Args:
        users: [P, D].
        items: [U, D] vectors of `batch.items`.
        batch: with negatives [K].
        expected: [U] expected count of each item among the negatives; None: each counts as one item.
    """
    target, logits, hits = shared_logits(users, items, batch)
    if expected is not None:
        logits = logits - expected.index_select(0, batch.negatives).log()
    return torch.logaddexp(target, logits.masked_fill(hits, float("-inf")).logsumexp(dim=1))
