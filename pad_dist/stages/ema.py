"""The weights of a stage that are validated and kept: those of the moment, or their moving average (EMA) over epochs.

The average is kept beside the weights that are trained: of the dense part in the
model that scores, of the tables in host memory, each rank's of its own rows. A
validation finds it in the tables, where it takes the place of the trained rows for
as long. A checkpoint has it under the names of the weights, so that whoever reads
one gets what was selected; the trained rows are beside it as "<table>.trained", the
trained dense weights with the optimizer's state.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from pad_dist.checkpoint.files import load_dense, load_optimizer, load_shards
from pad_dist.model.recommender import Recommender
from pad_dist.sparse.hashed import HashedTables
from pad_dist.sparse.spec import TableShard
from pad_dist.stages.stage_runtime import StageRuntime
from pad_dist.training.engine import full_state

_BLOCK_ROWS = 1 << 14


class EmaWeights:
    """What of a stage is validated and kept; without `ema_decay` the weights as they are.

    Attributes:
        model: the dense model that scores, in eval mode; `validating` and `end_epoch` bring it up to date.
    """

    def __init__(self, runtime: StageRuntime, finish_save: Callable[[], None]) -> None:
        """Make room beside the weights of a stage.

        `finish_save` waits for a save that reads the tables; it is called before they change otherwise than by a step.
        """
        self.model: Recommender = copy.deepcopy(runtime.model).eval()
        self._runtime = runtime
        self._finish_save = finish_save
        self._decay = runtime.spec.settings.ema_decay
        self._averaged = runtime.spec.ema_tables
        self._trained = [shard for shard in runtime.tables.weights() if shard.name in self._averaged]
        hashed = isinstance(runtime.tables, HashedTables)
        self._averages = [
            replace(shard, tensor=torch.zeros_like(shard.tensor, device="cpu"), changes="rows" if hashed else "none")
            for shard in self._trained
        ]
        if isinstance(runtime.tables, HashedTables):
            runtime.tables.followers = self._averages

    def shards(self) -> list[TableShard]:
        """The shards of this rank's file of a checkpoint, under their names in it."""
        return [*self._averages, *map(self._named, self._runtime.tables.shards())]

    def load(self, path: str) -> None:
        """Take the weights of a checkpoint to train on from, and their average. Collective."""
        load_shards(path, [*self._averages, *map(self._named, self._runtime.tables.weights())])
        dense = load_dense(path)
        self.model.load_state_dict(dense)
        trained = load_optimizer(path) if self._decay else {}
        self._runtime.model.load_state_dict({name: trained.get(f"model.{name}.weight", dense[name]) for name in dense})

    @torch.no_grad()
    def end_epoch(self, epoch: int) -> None:
        """Take the weights of an epoch's end into the average; up to the first epoch they are all of it. Collective."""
        if not self._decay:
            return
        new = 1 - self._decay if epoch > 1 else 1.0
        average = self.model.state_dict()
        for name, value in full_state(self._runtime.model).items():
            average[name].lerp_(value, new)
        for trained, kept in self._blocks():
            kept.copy_(kept.float().lerp(trained.float().cpu(), new))

    def dense(self) -> dict[str, Tensor]:
        """The dense weights to keep. Collective."""
        return self.model.state_dict() if self._decay else full_state(self._runtime.model)

    @contextmanager
    def validating(self) -> Iterator[None]:
        """Within the block the tables and `model` hold what is scored. Collective."""
        if not self._decay:
            self.model.load_state_dict(full_state(self._runtime.model))
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for trained, kept in self._blocks():
            before = trained.to("cpu", copy=True)
            trained.copy_(kept)
            kept.copy_(before)

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows of the trained tables and of their averages, which no save reads any more. Collective."""
        if self._trained:
            self._finish_save()
        for shard, average in zip(self._trained, self._averages, strict=True):
            yield from zip(shard.tensor.split(_BLOCK_ROWS), average.tensor.split(_BLOCK_ROWS), strict=True)

    def _named(self, shard: TableShard) -> TableShard:
        """A shard under its name in a checkpoint."""
        return replace(shard, name=f"{shard.name}.trained") if shard.name in self._averaged else shard
