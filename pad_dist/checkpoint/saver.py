"""Saving a checkpoint while training goes on, without a second copy of the tables.

At a save each rank notes its shards and a thread writes them block after block from
the memory that training works on. What is written is exactly the state at the save,
because of this invariant: under `_lock`, a row is either in a block that the
thread has taken (`_taken`), or has not changed since the save, or its old values are
in `CopyOnWrite`. Training keeps the invariant: before the rows of a step change, `Saver.keep`
copies those that are not taken to `CopyOnWrite`, once each. The thread keeps it too: it copies a
block without the lock, while rows may change under it, then, under the lock, lays
the old rows over the copy and marks the block as taken. Rows that changed during
the copy are among those, so the copy is whole.

Shards whose changed rows are not known from a step's items (`TableShard.changes`), and the
dense weights, are copied when the save begins.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from types import TracebackType
from typing import Any, Self

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from pad_dist import storage
from pad_dist.checkpoint import files as checkpoint
from pad_dist.checkpoint.copy_on_write import CopyOnWrite
from pad_dist.checkpoint.shard_files import BlockFile, layout, write_shards
from pad_dist.config import CheckpointConfig
from pad_dist.distributed.context import DistributedContext
from pad_dist.distributed.preemption import Preempted
from pad_dist.errors import UserError
from pad_dist.sparse.spec import TableShard


class Saver:
    """Writes the checkpoints of one stage, one at a time. All methods are collective.

    As a context manager it ends the last save when the block ends, by a signal too, and drops it when the block fails.

    Attributes:
        lost: steps whose checkpoint could not be written.
        newest: step of the complete checkpoint that this run has written last or resumes from.
    """

    def __init__(
        self, directory: str, config: CheckpointConfig, context: DistributedContext, say: Callable[[str], None]
    ) -> None:
        self._directory = directory
        self._config = config
        self._context = context
        self._say = say
        self._flight: _Flight | None = None
        self._old: dict[tuple[str, tuple[int, ...]], CopyOnWrite] = {}
        self.lost: set[int] = set()
        self.newest: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind in (None, Preempted):
            self.finish()
        elif self._flight is not None:
            self._flight.give_up()

    @property
    def in_flight(self) -> bool:
        """Whether a save has begun and is not complete."""
        return self._flight is not None

    def save(
        self,
        step: int,
        *,
        shards: Sequence[TableShard],
        dense: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
        best: int,
        meta: dict[str, Any],
    ) -> None:
        """Save the state as it is now; `best` is the step of the best checkpoint. Waits for the save in flight.

        Raises:
            UserError: a save failed, and `checkpoint.on_error` is `stop`.
        """
        self.finish()
        path = checkpoint.place(self._directory, step)
        if step == self.newest:
            # Its files hold this state. Written anew it would be gone for a while; only the progress is new.
            error = self._first(lambda: self._complete_anew(path, meta | {"step": step, "best": best}))
            if error:
                self._report(f"{path} could not be completed anew: {error}")
            return
        error = self._first(lambda: checkpoint.clear(path))
        if error:
            self._failed(path, step, error)
            return
        whole = {"dense": dense, "optimizer": optimizer} if self._context.is_first else {}
        shards = [shard for shard in shards if shard.tensor.numel()]
        self._flight = _Flight(path, step, best, meta, shards, self._old_rows(shards), whole, self._context.rank)
        if not self._config.asynchronous:
            self.finish()

    def _old_rows(self, shards: Sequence[TableShard]) -> list[CopyOnWrite | None]:
        """Copy-on-write of each shard, cleared for a new save; None for one that is copied or does not change."""
        for shard in shards:
            if shard.changes == "rows" and (shard.name, shard.offsets) not in self._old:
                self._old[shard.name, shard.offsets] = CopyOnWrite(shard)
        for old in self._old.values():
            old.clear()
        return [self._old.get((shard.name, shard.offsets)) for shard in shards]

    def keep(self, items: Tensor) -> None:
        """Before rows change: complete the save in flight if all ranks have written their shards, else copy the rows.

        `items` are the rows of this rank's step. Collective while a save is in flight.

        Raises:
            UserError: as `save`.
        """
        flight = self._flight
        if flight is None:
            return
        counts = torch.zeros(self._context.world_size + 2, dtype=torch.int64, device=items.device)
        counts[self._context.rank] = len(items)
        counts[-2:] = torch.tensor([flight.ended, flight.error != ""])
        *lengths, ended, failed = self._context.sum(counts).tolist()
        if failed:
            flight.give_up()
        if failed or ended == self._context.world_size:
            self._advance(flight)
        elif not flight.is_written:
            flight.keep(self._context.union(items, max(lengths)))

    def finish(self) -> None:
        """Wait for the save in flight.

        Raises:
            UserError: as `save`.
        """
        while self._flight is not None:
            self._flight.join()
            self._advance(self._flight)

    def _advance(self, flight: _Flight) -> None:
        """When the threads of all ranks have ended: let the first rank complete the checkpoint, or end the save."""
        states = self._context.gather((flight.written, flight.error, flight.left))
        errors = [f"rank {rank}: {error}" for rank, (_, error, _) in enumerate(states) if error]
        if errors:
            self._flight = None
            self._failed(flight.path, flight.step, errors[0])
        elif flight.is_written:
            self._flight = None
            self.newest = flight.step
            if states[0][-1]:
                self._report(f"older checkpoints of {self._directory} could not be removed: {states[0][-1]}")
        else:
            flight.is_written = True
            if self._context.is_first:
                flight.start(lambda: self._complete(flight, [written for written, *_ in states]))

    def _complete(self, flight: _Flight, written: list[dict[str, Any]]) -> None:
        meta = flight.meta | {"step": flight.step, "best": flight.best, "world_size": self._context.world_size}
        checkpoint.complete(flight.path, meta, written)
        try:
            checkpoint.retain(self._directory, flight.step, self._config.keep)
        except Exception as error:  # of any store; the checkpoint is complete
            flight.left = described(error)

    def _complete_anew(self, path: str, meta: dict[str, Any]) -> None:
        checkpoint.update(path, meta)
        checkpoint.retain(self._directory, meta["step"], self._config.keep)

    def _failed(self, path: str, step: int, error: str) -> None:
        self.lost.add(step)
        if self._context.is_first:
            with suppress(Exception):  # what cannot be removed has no COMPLETE
                storage.remove(path)
        self._report(f"{path} could not be written, older checkpoints are whole: {error}")

    def _report(self, text: str) -> None:
        if self._config.on_error == "stop":
            raise UserError(
                f"{text}: free space, name another place in checkpoint.root, or set checkpoint.on_error=continue"
            )
        self._say(f"{text}; training goes on")

    def _first(self, act: Callable[[], None]) -> str:
        """Let the first rank act; the error, "" if there was none. Collective."""

        def attempt() -> str:
            try:
                act()
            except Exception as error:  # of any store, whose clients have errors of their own
                return f"rank 0: {described(error)}"
            return ""

        return self._context.from_first(attempt)


def described(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


class _Flight:
    """One save of this rank: the thread, and what training leaves to it."""

    def __init__(
        self,
        path: str,
        step: int,
        best: int,
        meta: dict[str, Any],
        shards: Sequence[TableShard],
        old: Sequence[CopyOnWrite | None],
        whole: Mapping[str, Mapping[str, Tensor]],
        rank: int,
    ) -> None:
        self.path, self.step, self.best, self.meta = path, step, best, meta
        self.error = ""
        self.written: dict[str, Any] = {"files": {}, "shards": []}
        self._shards = [
            replace(shard, tensor=shard.tensor.clone()) if shard.changes == "all" else shard for shard in shards
        ]
        self._whole = {
            f"{name}.safetensors": to_safetensors({key: value.contiguous().cpu() for key, value in values.items()})
            for name, values in whole.items()
        }
        self._layout = layout(f"tables-{rank:05d}.safetensors", self._shards)
        self._lock = threading.Lock()
        self._taken = [len(shard.tensor) if shard.changes == "all" else 0 for shard in self._shards]
        self._old = old
        self.is_written = False
        """Every rank has written its files."""
        self.left = ""
        """Why older checkpoints were left."""
        self._given_up = False
        self.start(self._write)

    def start(self, work: Callable[[], None]) -> None:
        """Let a thread do a part of the save."""
        self._thread = threading.Thread(target=self._run, args=(work,), name=f"save step {self.step}", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def join(self) -> None:
        self._thread.join()

    def give_up(self) -> None:
        """End without writing the rest."""
        self._given_up = True
        self._thread.join()

    def keep(self, rows: Tensor) -> None:
        """Copy the old values of rows, ascending in the whole table, that the thread has not taken."""
        with self._lock:
            for taken, shard, old in zip(self._taken, self._shards, self._old, strict=True):
                if old is not None and taken < len(shard.tensor):
                    local = rows - shard.offsets[0]
                    old.copy(local[(local >= taken) & (local < len(shard.tensor))])

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # of any store, whose clients have errors of their own
            self.error = "" if self._given_up else described(error)

    def _write(self) -> None:
        if self._layout:
            shards = write_shards(self.path, self._layout, self._fill)
            self.written["shards"] = [asdict(shard) for shard in shards]
            self.written["files"][shards[0].file] = checkpoint.file_record(self.path, shards[0].file)
        for name, content in self._whole.items():
            with BlockFile(storage.join(self.path, name)) as file:
                file.write(content)
            self.written["files"][name] = checkpoint.file_record(self.path, name, content)

    def _fill(self, number: int, start: int, stop: int, out: Tensor) -> None:
        """Put rows [start, stop) of a shard, as they were at the save, into `out`."""
        if self._given_up:
            raise InterruptedError("the save was given up")
        shard = self._shards[number]
        out.copy_(shard.tensor[start:stop])
        old = self._old[number]
        if old is not None:
            with self._lock:
                old.lay_over(start, stop, out)
                self._taken[number] = stop
