"""Binary cross-entropy, plain and calibrated."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from pad_dist.config import BceConfig, GbceConfig
from pad_dist.data.batches import Batch, StepSize
from pad_dist.objectives.losses.base import LOSSES, Loss, in_full_precision, shared_logits


@LOSSES.register(BceConfig)
class Bce(Loss):
    """See `bce_sum`."""

    def __call__(self, users: Tensor, items: Tensor, batch: Batch, expected: Tensor | None) -> Tensor:
        return bce_sum(users, items, batch)

    @staticmethod
    def logit_bytes(step: StepSize, dim: int) -> int:
        return 0


@LOSSES.register(GbceConfig)
class Gbce(Loss):
    """See `gbce_sum`."""

    def __init__(self, config: GbceConfig, catalogue: int) -> None:
        super().__init__(config, catalogue)
        self._beta = gbce_beta(config.negatives, catalogue, config.t)

    def __call__(self, users: Tensor, items: Tensor, batch: Batch, expected: Tensor | None) -> Tensor:
        return gbce_sum(users, items, batch, self._beta)

    @staticmethod
    def logit_bytes(step: StepSize, dim: int) -> int:
        return step.positions * step.negatives * (3 * 4 + 1)


def bce_sum(users: Tensor, items: Tensor, batch: Batch) -> Tensor:
    """Sum over positions of BCE(target, 1) + BCE(negative, 0), one negative per position.

    Args:
        users: [P, D].
        items: [U, D] vectors of `batch.items`.
        batch: with negatives [P].

    Returns:
        [] fp32 (fp64 if the vectors are).
    """
    users, items = in_full_precision(users), in_full_precision(items)
    positive = (users * items.index_select(0, batch.targets)).sum(dim=1)
    negative = (users * items.index_select(0, batch.negatives)).sum(dim=1)
    return -F.logsigmoid(positive).sum() - F.logsigmoid(-negative).sum()


def gbce_sum(users: Tensor, items: Tensor, batch: Batch, beta: float) -> Tensor:
    """Sum over positions of gBCE (gSASRec, arXiv 2308.07192) with K shared negatives.

    Per position (beta * BCE(target, 1) + sum of BCE(negative, 0)) / (K + 1). A negative that is the
    position's target counts 0.

    Args:
        users: [P, D].
        items: [U, D] vectors of `batch.items`.
        batch: with negatives [K].
        beta: see `gbce_beta`; 1 gives BCE.

    Returns:
        [] fp32 (fp64 if the vectors are).
    """
    target, logits, hits = shared_logits(users, items, batch)
    negative = F.logsigmoid(-logits).masked_fill(hits, 0)
    return -(beta * F.logsigmoid(target).sum() + negative.sum()) / (len(batch.negatives) + 1)


def gbce_beta(negatives: int, catalogue: int, t: float) -> float:
    """gSASRec's exponent of the target's probability: 1 at t = 0, the sampling rate of negatives at t = 1.

    >>> gbce_beta(256, 1025, 0.75)
    0.4375
    """
    rate = min(1.0, negatives / max(1, catalogue - 1))
    return 1 - t * (1 - rate)
