"""The weights of a stage that are validated and kept: those of the moment, or a running average over epochs.

The average is kept beside the weights that are trained: of the dense part in the
module that scores, of the tables in host memory, each rank's of its own rows. A
validation finds it in the tables, where it takes the place of the trained rows for
as long. A checkpoint holds it under the names of the weights, so that whoever reads
one gets what was selected; the trained rows lie beside it as "<table>.trained", the
trained dense weights with the optimizer's state.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from pad_dist.model.pad import Pad
from pad_dist.sparse.hashed import HashedTables
from pad_dist.sparse.tables import Part
from pad_dist.stages.parts import averaged_tables
from pad_dist.stages.system import System
from pad_dist.training.checkpoint import load_dense, load_optimizer, load_parts
from pad_dist.training.engine import full_state

_BLOCK_ROWS = 1 << 14


class ScoredWeights:
    """What of a stage is validated and kept.

    Attributes:
        pad: the dense module that scores, in eval mode; `validating` and `end_epoch` bring it up to date.
    """

    def __init__(self, system: System, finish_save: Callable[[], None]) -> None:
        """Make room beside the weights of a stage.

        `finish_save` waits for a save that reads the tables; it is called before they change otherwise than by a step.
        """
        self.pad: Pad = copy.deepcopy(system.pad).eval()
        self._system = system
        self._finish_save = finish_save
        self._share = system.config.stage(system.stage).average
        self._averaged = averaged_tables(system.config, system.stage)
        self._trained = [part for part in system.tables.weights() if part.name in self._averaged]
        hashed = isinstance(system.tables, HashedTables)
        self._averages = [
            replace(part, tensor=torch.zeros_like(part.tensor, device="cpu"), changes="rows" if hashed else "none")
            for part in self._trained
        ]
        if isinstance(system.tables, HashedTables):
            system.tables.followers = self._averages

    def parts(self) -> list[Part]:
        """What this rank's file of a checkpoint holds, under the names there."""
        return [*self._averages, *map(self._named, self._system.tables.parts())]

    def load(self, path: str) -> None:
        """Take the weights of a checkpoint to train on from, and their average. Collective."""
        load_parts(path, [*self._averages, *map(self._named, self._system.tables.weights())])
        dense = load_dense(path)
        self.pad.load_state_dict(dense)
        trained = load_optimizer(path) if self._share else {}
        self._system.pad.load_state_dict({name: trained.get(f"pad.{name}.weight", dense[name]) for name in dense})

    @torch.no_grad()
    def end_epoch(self, epoch: int) -> None:
        """Take the weights of an epoch's end into the average; up to the first epoch they are all of it. Collective."""
        if not self._share:
            return
        new = 1 - self._share if epoch > 1 else 1.0
        average = self.pad.state_dict()
        for name, value in full_state(self._system.pad).items():
            average[name].lerp_(value, new)
        for trained, kept in self._blocks():
            kept.copy_(kept.float().lerp(trained.float().cpu(), new))

    def dense(self) -> dict[str, Tensor]:
        """The dense weights to keep. Collective."""
        return self.pad.state_dict() if self._share else full_state(self._system.pad)

    @contextmanager
    def validating(self) -> Iterator[None]:
        """Within the block the tables and `pad` hold what is scored. Collective."""
        if not self._share:
            self.pad.load_state_dict(full_state(self._system.pad))
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
        for part, average in zip(self._trained, self._averages, strict=True):
            yield from zip(part.tensor.split(_BLOCK_ROWS), average.tensor.split(_BLOCK_ROWS), strict=True)

    def _named(self, part: Part) -> Part:
        """A part of the tables under its name in a checkpoint."""
        return replace(part, name=f"{part.name}.trained") if part.name in self._averaged else part
