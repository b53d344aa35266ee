"""Next-item losses, as sums over this rank's positions.

The caller divides by `Batch.positions`, the GLOBAL count, so that any world size gives the
same loss and gradient. Logits are fp32 whatever the model's precision.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pad_dist.data.batches import Batch

CHUNK_LOGITS = 1 << 23
"""Logits of the full softmax that are held at once (32 MiB, and as much again while they are summed)."""


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


def gbce_sum(users: Tensor, items: Tensor, batch: Batch, beta: float) -> Tensor:
    """Sum over positions of gBCE (gSASRec, arXiv 2308.07192) with K shared negatives.

    Per position (beta * BCE(target, 1) + sum of BCE(negative, 0)) / (K + 1). A negative that is the
    position's own target counts 0.

    Args:
        users: [P, D].
        items: [U, D] vectors of `batch.items`.
        batch: with negatives [K].
        beta: see `gbce_beta`; with 1 it is BCE.

    Returns:
        [] fp32 (fp64 if the vectors are).
    """
    target, logits, hits = _logits(users, items, batch)
    negative = F.logsigmoid(-logits).masked_fill(hits, 0)
    return -(beta * F.logsigmoid(target).sum() + negative.sum()) / (len(batch.negatives) + 1)


def gbce_beta(negatives: int, catalogue: int, t: float) -> float:
    """gSASRec's exponent of the target's probability: 1 at t = 0, the sampling rate of negatives at t = 1.

    >>> gbce_beta(256, 1025, 0.75)
    0.4375
    """
    rate = min(1.0, negatives / max(1, catalogue - 1))
    return 1 - t * (1 - rate)


def sampled_softmax_sum(users: Tensor, items: Tensor, batch: Batch, expected: Tensor | None = None) -> Tensor:
    """Sum over positions of the cross-entropy of the target among itself and K shared negatives.

    A negative that is the position's own target is left out of that position. With `expected` each
    negative stands for the items that were not drawn (log-Q correction): the sum of exponentials is
    then an unbiased estimate of that over the catalogue, however negatives are drawn.

    Args:
        users: [P, D].
        items: [U, D] vectors of `batch.items`.
        batch: with negatives [K].
        expected: [U] expected count of each item among the negatives.

    Returns:
        [] fp32 (fp64 if the vectors are).
    """
    target, logits, hits = _logits(users, items, batch)
    if expected is not None:
        logits = logits - expected.index_select(0, batch.negatives).log()
    logits = torch.cat([target.unsqueeze(1), logits.masked_fill(hits, float("-inf"))], dim=1)
    return F.cross_entropy(logits, torch.zeros_like(batch.targets), reduction="sum")


def softmax_sum(users: Tensor, items: Tensor, batch: Batch, chunk_logits: int = CHUNK_LOGITS) -> Tensor:
    """Sum over positions of the cross-entropy of the target among all negatives, of which it is one.

    Args:
        users: [P, D].
        items: [U, D] vectors of `batch.items`.
        batch: whose negatives [K] are the catalogue, each item once.
        chunk_logits: logits held at once; P * K never are.

    Returns:
        [] fp32 (fp64 if the vectors are).
    """
    users, items = _full(users), _full(items)
    target = (users * items.index_select(0, batch.targets)).sum(dim=1)
    size = max(1, chunk_logits // max(1, len(users)))
    total: Tensor = _LogSumExp.apply(users, items.index_select(0, batch.negatives), size)  # type: ignore[no-untyped-call]
    return (total - target).sum()


class _LogSumExp(torch.autograd.Function):
    """[P] log of the sum over items of exp <user, item>, `size` items at a time.

    Forward keeps a running log-sum-exp, backward computes each chunk's logits again: beside users,
    items and their gradients only [P, size] is held.
    """

    @staticmethod
    def forward(ctx: Any, users: Tensor, items: Tensor, size: int) -> Tensor:
        total = users.new_full((len(users),), float("-inf"))
        for chunk in items.split(size):
            total = torch.logaddexp(total, (users @ chunk.T).logsumexp(dim=1))
        ctx.save_for_backward(users, items, total)
        ctx.size = size
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        users, items, total = ctx.saved_tensors
        users_grad, items_grad = torch.zeros_like(users), torch.empty_like(items)
        for chunk, chunk_grad in zip(items.split(ctx.size), items_grad.split(ctx.size), strict=True):
            pull = (users @ chunk.T).sub_(total.unsqueeze(1)).exp_().mul_(gradient.unsqueeze(1))
            users_grad.addmm_(pull, chunk)
            torch.mm(pull.T, users, out=chunk_grad)
        return users_grad, items_grad, None


def _logits(users: Tensor, items: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The target's logit [P], those of the shared negatives [P, K], and where one is the position's own target."""
    users, items = _full(users), _full(items)
    target = (users * items.index_select(0, batch.targets)).sum(dim=1)
    logits = users @ items.index_select(0, batch.negatives).T
    return target, logits, batch.targets.unsqueeze(1) == batch.negatives


def _full(vectors: Tensor) -> Tensor:
    return vectors.to(torch.promote_types(vectors.dtype, torch.float32))
