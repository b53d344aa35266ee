"""What an alignment loss is (docs/method.md, "Phase 2: align")."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch.distributed as dist
from torch import Tensor

from pad_dist.runtime.registry import Registry


class Alignment(ABC):
    """Draws projected texts t and rows e of the aligned table together, over the samples of all ranks."""

    counts_items_once: bool = True
    """Whether each item is one sample, without padding; else each occurrence in the batch is one."""

    def __init__(self, config: Any, group: dist.ProcessGroup | None) -> None:
        """`config` is the alignment's section; `group` None: this process alone."""
        self._config, self._group = config, group

    @abstractmethod
    def __call__(self, text: Tensor, row: Tensor, weights: Tensor) -> Tensor:
        """This rank's share of the loss; the shares of all ranks sum to it. Collective.

        Args:
            text: [U, D] t.
            row: [U, D] e.
            weights: [U] number of samples per item.

        Returns:
            [] whose gradient is that of the global loss in this rank's t and e (see `mk_mmd`).
        """


ALIGNMENTS: Registry[Alignment] = Registry(__package__)
