"""What an auxiliary loss is: a stage learns it besides, or instead of, the recommendation loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch.distributed as dist
from torch import Tensor

from pad_dist.config import AuxiliaryConfig, ModelConfig
from pad_dist.data.batches import Batch, Rows, StepSize
from pad_dist.model.heads import Head
from pad_dist.model.recommender import Output
from pad_dist.runtime.registry import Registry


class AuxiliaryLoss(ABC):
    """A loss over the samples of all ranks; every one reads text vectors."""

    def __init__(self, config: Any, group: dist.ProcessGroup | None) -> None:
        """`config` is the loss's section; `group` None: this process alone."""
        self._config, self._group = config, group

    @abstractmethod
    def __call__(self, output: Output, batch: Batch, rows: Rows, head: Head | None) -> Tensor:
        """This rank's share of the weighted loss; the shares of all ranks sum to it. Collective.

        Returns:
            [] whose gradient is that of the global loss in this rank's values (see `mk_mmd`).
        """

    def masked(self, seed: int, step: int, items: Tensor) -> Tensor | None:
        """[U] bool, which items of a step the encoder reads as a token, the same on every rank; None: none."""
        return None

    @classmethod
    def make_head(cls, model: ModelConfig, text_dim: int) -> Head | None:
        """The head that it trains with the experts, if it has one."""
        return None

    @classmethod
    def head_values(cls, model: ModelConfig, text_dim: int, step: StepSize) -> int:
        """Most values in memory for the head in a training step."""
        return 0

    @classmethod
    @abstractmethod
    def samples(cls, config: Any, model: ModelConfig, text_dim: int, step: StepSize) -> tuple[int, int]:
        """Most samples of a rank in a training step, and the width of their vectors."""


AUXILIARY_LOSSES: Registry[AuxiliaryLoss] = Registry(__package__)


def auxiliary_class(config: AuxiliaryConfig) -> type[AuxiliaryLoss]:
    """The class of a section."""
    return AUXILIARY_LOSSES[type(config)]
