"""The alignment of phase 2 (docs/method.md, "Phase 2: align")."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from pad_dist.config import AlignConfig, ModelConfig
from pad_dist.data.batches import Batch, Rows, StepSize
from pad_dist.model.heads import Head
from pad_dist.model.recommender import Output
from pad_dist.objectives.alignments.base import ALIGNMENTS
from pad_dist.objectives.auxiliary.base import AUXILIARY_LOSSES, AuxiliaryLoss
from pad_dist.objectives.samples import once


@AUXILIARY_LOSSES.register(AlignConfig)
class Align(AuxiliaryLoss):
    """gamma times the alignment of projected texts with rows of the aligned table."""

    def __init__(self, config: AlignConfig, group: dist.ProcessGroup | None) -> None:
        super().__init__(config, group)
        self._alignment = ALIGNMENTS[type(config.alignment)](config.alignment, group)

    def __call__(self, output: Output, batch: Batch, rows: Rows, head: Head | None) -> Tensor:
        assert output.projected is not None and output.anchored is not None
        if not self._config.gamma:
            return output.projected.new_zeros(())
        # An item without a row in a hashed table reads zeros: there is nothing to align with.
        sampled = (batch.occurrences > 0) & output.anchored.any(1)
        if self._alignment.counts_items_once:
            sampled &= batch.items > 0
            weights = once(batch.items[sampled], self._group)
        else:
            weights = batch.occurrences[sampled]
        loss: Tensor = self._config.gamma * self._alignment(
            output.projected[sampled], output.anchored[sampled], weights
        )
        return loss

    @classmethod
    def samples(cls, config: AlignConfig, model: ModelConfig, text_dim: int, step: StepSize) -> tuple[int, int]:
        return (step.unique, model.dim) if config.gamma else (0, 0)
