"""Next-item losses (METHOD, phase 1), as sums over this rank's positions.

The caller divides by `Batch.positions`, the GLOBAL count, so that any world size gives the
same loss and gradient. Logits are fp32 whatever the model's precision.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pad_dist.data.batches import Batch


def bce_sum(users: Tensor, items: Tensor, batch: Batch) -> Tensor:
    """Sum over positions of BCE(target, 1) + BCE(negative, 0), one negative per position.

    Args:
        users: [P, D].
        items: [U, D] vectors of `batch.items`.
        batch: with negatives [P].

    Returns:
        [] fp32 (fp64 if the vectors are).
    """
    users, items = _full(users), _full(items)
    positive = (users * items.index_select(0, batch.targets)).sum(dim=1)
    negative = (users * items.index_select(0, batch.negatives)).sum(dim=1)
    return -F.logsigmoid(positive).sum() - F.logsigmoid(-negative).sum()


def sampled_softmax_sum(users: Tensor, items: Tensor, batch: Batch) -> Tensor:
    """Sum over positions of the cross-entropy of the target among itself and K shared negatives.

    A negative that is the position's own target is left out of that position.

    Args:
        users: [P, D].
        items: [U, D] vectors of `batch.items`.
        batch: with negatives [K].

    Returns:
        [] fp32 (fp64 if the vectors are).
    """
    users, items = _full(users), _full(items)
    target = (users * items.index_select(0, batch.targets)).sum(dim=1, keepdim=True)
    logits = users @ items.index_select(0, batch.negatives).T
    logits = logits.masked_fill(batch.targets.unsqueeze(1) == batch.negatives, float("-inf"))
    return F.cross_entropy(torch.cat([target, logits], dim=1), torch.zeros_like(batch.targets), reduction="sum")


def _full(vectors: Tensor) -> Tensor:
    return vectors.to(torch.promote_types(vectors.dtype, torch.float32))
