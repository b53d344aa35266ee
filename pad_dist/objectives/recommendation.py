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

CHUNK_LOGITS = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Logits of a softmax that are held at once: on a CPU what its cache holds (1 MiB), on a GPU what keeps it busy."""


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


def softmax_sum(
    users: Tensor, items: Tensor, batch: Batch, expected: Tensor | None = None, chunk_logits: int | None = None
) -> Tensor:
    """Sum over positions of the cross-entropy of the target among itself and K shared negatives.

    A negative that is the position's own target is left out of that position; the catalogue, each item
    once, gives the full softmax. With `expected` each negative stands for the items that were not drawn
    (log-Q correction): the sum of exponentials is then an unbiased estimate of that over the catalogue,
    however negatives are drawn, if `expected` is right.

    Args:
        users: [P, D].
        items: [U, D] vectors of `batch.items`.
        batch: with negatives [K].
        expected: [U] expected count of each item among the negatives.
        chunk_logits: logits held at once, K at least; P * K never are. Default: by device.

    Returns:
        [] fp32 (fp64 if the vectors are).
    """
    users, items = _full(users), _full(items)
    target = (users * items.index_select(0, batch.targets)).sum(dim=1)
    shift = None if expected is None else expected.index_select(0, batch.negatives).log()
    at_once = chunk_logits or CHUNK_LOGITS[users.device.type]
    loss: Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
        users,
        items.index_select(0, batch.negatives),
        target,
        shift,
        batch.targets,
        batch.negatives,
        max(1, at_once // max(1, len(batch.negatives))),
    )
    return loss


def approx_ndcg_sum(
    users: Tensor, items: Tensor, batch: Batch, expected: Tensor, temperature: float, weights: Tensor | None = None
) -> Tensor:
    """Sum over positions of weight * (1 - ndcg), with a smooth ndcg of the target (ApproxNDCG, Qin, Liu & Li 2010).

    There is one relevant item, so ndcg = 1 / log2(1 + rank). The rank is 1 + the sum over the other items of
    sigmoid((score - the target's) / temperature), in which each of K shared negatives stands for the items that were
    not drawn; the catalogue gives it whole. The user's own items count too, which the ndcg of an evaluation leaves out.

    Args:
        users: [P, D].
        items: [U, D] vectors of `batch.items`.
        batch: with negatives [K].
        expected: [U] expected count of each item among the negatives.
        weights: [P]; None: all 1.

    Returns:
        [] fp32 (fp64 if the vectors are).
    """
    target, logits, hits = _logits(users, items, batch)
    above = torch.sigmoid((logits - target.unsqueeze(1)) / temperature).masked_fill(hits, 0)
    ranks = 1 + above @ (1 / expected.index_select(0, batch.negatives)).to(above.dtype)
    losses = 1 - 1 / torch.log2(1 + ranks)
    return (losses if weights is None else losses * weights).sum()


def log_partition(users: Tensor, items: Tensor, batch: Batch, expected: Tensor | None) -> Tensor:
    """[P] log of the sum of exp <user, item> over the catalogue, estimated from the target and K shared negatives.

    Args:
        users: [P, D].
        items: [U, D] vectors of `batch.items`.
        batch: with negatives [K].
        expected: [U] expected count of each item among the negatives; None: each stands for itself.
    """
    target, logits, hits = _logits(users, items, batch)
    if expected is not None:
        logits = logits - expected.index_select(0, batch.negatives).log()
    return torch.logaddexp(target, logits.masked_fill(hits, float("-inf")).logsumexp(dim=1))


class _CrossEntropy(torch.autograd.Function):
    """Sum over positions of log(exp target + sum of exp (<user, negative> - shift)) - target, `size` of them at once.

    A sum has one upstream gradient for all positions, so forward takes the gradients too, while a chunk's logits are
    in the cache, and keeps nothing of size P * K.
    """

    @staticmethod
    def forward(
        ctx: Any,
        users: Tensor,
        negatives: Tensor,
        target: Tensor,
        shift: Tensor | None,
        target_places: Tensor,
        negative_places: Tensor,
        size: int,
    ) -> Tensor:
        users_grad, negatives_grad = torch.empty_like(users), torch.zeros_like(negatives)
        total = torch.empty_like(target)
        for start in range(0, len(users), size):
            chunk = slice(start, start + size)
            logits = users[chunk] @ negatives.T
            if shift is not None:
                logits.sub_(shift)
            logits.masked_fill_(target_places[chunk, None] == negative_places, float("-inf"))
            highest = torch.maximum(logits.amax(dim=1), target[chunk])
            odds = logits.sub_(highest[:, None]).exp_()
            sums = odds.sum(dim=1).add_((target[chunk] - highest).exp_())
            total[chunk] = sums.log().add_(highest)
            odds.div_(sums[:, None])
            torch.mm(odds, negatives, out=users_grad[chunk])
            negatives_grad.addmm_(odds.T, users[chunk])
        ctx.save_for_backward(users_grad, negatives_grad, (target - total).exp_().sub_(1))
        return (total - target).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        return *(found * gradient for found in ctx.saved_tensors), None, None, None, None


def _logits(users: Tensor, items: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The target's logit [P], those of the shared negatives [P, K], and where one is the position's own target."""
    users, items = _full(users), _full(items)
    target = (users * items.index_select(0, batch.targets)).sum(dim=1)
    logits = users @ items.index_select(0, batch.negatives).T
    return target, logits, batch.targets.unsqueeze(1) == batch.negatives


def _full(vectors: Tensor) -> Tensor:
    return vectors.to(torch.promote_types(vectors.dtype, torch.float32))
