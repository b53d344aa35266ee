"""What a recommendation loss is (docs/method.md, "Recommendation losses").

Logits are fp32 whatever the model's precision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from pad_dist.config import NegativeSampling
from pad_dist.data.batches import Batch, StepSize
from pad_dist.runtime.registry import Registry


class Loss(ABC):
    """A loss over the next item, as a sum over this rank's positions.

    The caller divides by `Batch.positions`, the GLOBAL count, so that any world size gives the same loss and gradient.
    """

    def __init__(self, config: Any, catalogue: int) -> None:
        """`config` is the loss's section, `catalogue` the number of items that negatives are drawn from."""
        self._config, self._catalogue = config, catalogue

    @abstractmethod
    def __call__(self, users: Tensor, items: Tensor, batch: Batch, expected: Tensor | None) -> Tensor:
        """Sum over positions.

        Args:
            users: [P, D].
            items: [U, D] vectors of `batch.items`.
            batch: with the negatives that the section asks for.
            expected: [U] expected count of each item among the negatives, for log-Q correction.

        Returns:
            [] fp32 (fp64 if the vectors are).
        """

    @staticmethod
    @abstractmethod
    def logit_bytes(step: StepSize, dim: int) -> int:
        """Most bytes of the logits of a training step."""


LOSSES: Registry[Loss] = Registry(__package__)


def build_loss(config: NegativeSampling, catalogue: int) -> Loss:
    """The loss of a section."""
    return LOSSES[type(config)](config, catalogue)


def shared_logits(users: Tensor, items: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of the targets [P] and of the shared negatives [P, K], and which negatives are the position's target."""
    users, items = in_full_precision(users), in_full_precision(items)
    target = (users * items.index_select(0, batch.targets)).sum(dim=1)
    logits = users @ items.index_select(0, batch.negatives).T
    return target, logits, batch.targets.unsqueeze(1) == batch.negatives


def in_full_precision(vectors: Tensor) -> Tensor:
    return vectors.to(torch.promote_types(vectors.dtype, torch.float32))
