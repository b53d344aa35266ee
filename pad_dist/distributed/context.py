"""The process's place among the ranks, and how a launch begins and ends."""

from __future__ import annotations

import logging
import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from math import inf
from typing import Any

import torch
import torch.distributed as dist

from pad_dist.config import TrainingConfig
from pad_dist.distributed.preemption import Preempted, Preemption
from pad_dist.distributed.watchdog import Watchdog
from pad_dist.errors import UserError
from pad_dist.runtime.entry import PREEMPTED_STATUS, USER_ERROR_STATUS, print_error, print_preempted


@dataclass(frozen=True)
class DistributedContext:
    """This process among all ranks; `device` is where its dense model and its table shards live."""

    rank: int
    world_size: int
    device: torch.device
    group: dist.ProcessGroup
    preemption: Preemption = field(default_factory=Preemption)
    watchdog: Watchdog = field(default_factory=lambda: Watchdog(0, 1, inf, inf))

    @property
    def peers(self) -> dist.ProcessGroup | None:
        """The group of all ranks; None where this process is the only one."""
        return self.group if self.world_size > 1 else None

    @property
    def is_first(self) -> bool:
        """Rank 0 prints and writes."""
        return self.rank == 0

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, in place, returned for convenience. Collective."""
        dist.all_reduce(value, group=self.group)
        return value

    def from_first(self, find: Callable[[], str]) -> str:
        """What the first rank finds, on every rank, also the UserError that it meets. Collective."""
        answer = ["", ""]  # and an error
        if self.is_first:
            try:
                answer[0] = find()
            except UserError as error:
                answer[1] = str(error)
        dist.broadcast_object_list(answer, src=0, group=self.group, device=self.device)
        if answer[1]:
            raise UserError(answer[1])
        return answer[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in rank order. Collective."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def union(self, items: torch.Tensor, longest: int) -> torch.Tensor:
        """[n] integers of each rank, n at most `longest` -> all of them, ascending, each once. Collective.

        Those of one rank are so already.
        """
        if self.world_size == 1:
            return items
        padded = items.new_full((longest,), -1)
        padded[: len(items)] = items
        gathered = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(gathered, padded, group=self.group)
        every: torch.Tensor = torch.cat(gathered).unique()
        return every[every >= 0]

    def barrier(self) -> None:
        """Wait for every rank."""
        dist.barrier(self.group)

    def proceed(self, doing: str) -> None:
        """Report progress outside of training steps, or end where any rank was told to. Collective.

        Raises:
            Preempted: on every rank.
        """
        self.watchdog.heartbeat(doing)
        requested = torch.tensor(int(self.preemption.requested), device=self.device)
        if requested if self.world_size == 1 else self.sum(requested):
            raise Preempted


def device_kind(config: TrainingConfig) -> str:
    """`cpu` or `cuda`; `auto` is CUDA where torch sees a device.

    Raises:
        UserError: a CUDA run where there is no CUDA device.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("training.device=cuda, but torch sees no CUDA device: use training.device=cpu or auto")
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.device


@contextmanager
def launched(config: TrainingConfig) -> Iterator[DistributedContext]:
    """Join the process group that deepspeed or torchrun set up; alone, be the only rank.

    Raises:
        UserError: a CUDA run where there is no CUDA device.
    """
    kind = device_kind(config)
    _quieten()
    alone = "RANK" not in os.environ
    os.environ.update(_ALONE if alone else {})
    device = torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(device)
    backend, timeouts = "nccl" if kind == "cuda" else "gloo", (config.first_step_timeout_s, config.step_timeout_s)
    # The watchdog ends a rank that waits too long, and says for whom; the engine's own timeout comes after it.
    timeout = timedelta(seconds=60 + max(timeouts))
    place: dict[str, Any] = {"store": dist.HashStore(), "rank": 0, "world_size": 1} if alone else {}
    dist.init_process_group(backend, timeout=timeout, device_id=device if kind == "cuda" else None, **place)
    group = dist.group.WORLD
    assert group is not None
    preemption, watchdog = Preemption(), Watchdog(dist.get_rank(), dist.get_world_size(), *timeouts)
    try:
        with preemption.listening(), _ending_together(preemption, watchdog):
            watchdog.open()
            yield DistributedContext(dist.get_rank(), dist.get_world_size(), device, group, preemption, watchdog)
    finally:
        dist.destroy_process_group()
        for name in _ALONE if alone else ():
            del os.environ[name]


@contextmanager
def _ending_together(preemption: Preemption, watchdog: Watchdog) -> Iterator[None]:
    """Let no rank wait for one that has ended: what ends one of them ends all, and one of them tells."""
    try:
        yield
        _leave(watchdog)
    except Preempted:
        _leave(watchdog)
        if dist.get_rank() == 0:
            print_preempted()
        raise SystemExit(PREEMPTED_STATUS) from None
    except BaseException as error:
        preemption.defer()  # the launcher may send a signal as soon as another rank has ended
        if isinstance(error, RuntimeError):
            watchdog.end_where_a_rank_is_lost(error)
        status = _status(error)
        if watchdog.is_first_to_end(status):
            _tell(error)
            watchdog.wait_for_others()
        raise SystemExit(status) from None
    finally:
        watchdog.close()


def _status(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return int(error.code or 0)
    return USER_ERROR_STATUS if isinstance(error, UserError) else 1


def _tell(error: BaseException) -> None:
    if _status(error) == PREEMPTED_STATUS:
        print_preempted()
    elif isinstance(error, UserError):
        print_error(error)
    else:
        print_error("a bug, or a machine that failed:")
        traceback.print_exception(error)


def _leave(watchdog: Watchdog) -> None:
    watchdog.close()
    # Without it a rank that is still sending is sometimes aborted at exit.
    dist.barrier()


_ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}


def _quieten() -> None:
    """Keep the engines' advice to their own developers off the user's screen; errors stay."""
    for name in ("torchrec", "torch.fx._symbolic_trace"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torchrec\.")
