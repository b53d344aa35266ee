"""Softmax cross-entropy, sampled and over the full catalogue."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pad_dist.config import SampledSoftmaxConfig, SoftmaxConfig
from pad_dist.data.batches import Batch, StepSize
from pad_dist.objectives.losses.base import LOSSES, Loss, in_full_precision

CHUNK_LOGITS = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Logits of a softmax that are computed at once: on a CPU as many as fit its cache (1 MiB), on a GPU enough to keep it
busy."""


@LOSSES.register(SampledSoftmaxConfig)
@LOSSES.register(SoftmaxConfig)
class Softmax(Loss):
    """See `softmax_sum`; if the softmax is not sampled, the loader makes every item a negative."""

    def __call__(self, users: Tensor, items: Tensor, batch: Batch, expected: Tensor | None) -> Tensor:
        return softmax_sum(users, items, batch, expected)

    @staticmethod
    def logit_bytes(step: StepSize, dim: int) -> int:
        """The negatives' vectors and gradients, and one chunk (of a CPU; a GPU's 80 MiB hardly count)."""
        chunk = max(CHUNK_LOGITS["cpu"], step.negatives) * (4 + 1)
        return step.negatives * dim * 4 * 2 + chunk


def softmax_sum(
    users: Tensor, items: Tensor, batch: Batch, expected: Tensor | None = None, chunk_logits: int | None = None
) -> Tensor:
    """Sum over positions of the cross-entropy of the target among itself and K shared negatives.

    A negative that is the position's target is left out of that position. The catalogue as negatives,
    each item once, gives the full softmax. `expected` turns on log-Q correction: the sum of exponentials
    is then an unbiased estimate of the sum over the catalogue, however negatives are drawn, if `expected`
    is right.

    Args:
        users: [P, D].
        items: [U, D] vectors of `batch.items`.
        batch: with negatives [K].
        expected: [U] expected count of each item among the negatives.
        chunk_logits: logits in memory at once, at least K and never P * K. Default: by device.

    Returns:
        [] fp32 (fp64 if the vectors are).
    """
    users, items = in_full_precision(users), in_full_precision(items)
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
        return *(saved * gradient for saved in ctx.saved_tensors), None, None, None, None
