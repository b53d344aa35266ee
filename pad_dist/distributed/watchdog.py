"""Ranks that watch one another, so that a dead or hung one ends the others with a line that names it.

Every rank reports what it does by `heartbeat`. Two threads of its own go with the main one:

* the publisher writes the newest heartbeat to a store that all ranks share, about once a second and after each step,
  and ends the process when another rank has said there that the launch is over. It alone talks to the store, which may
  be dead or hung itself;
* the progress timer ends the process when the main thread has made no heartbeat within the timeout.

All ranks make the same heartbeats in the same order. So one that is silent is dead or stopped, and of those that live
the one with the fewest heartbeats is what the others wait for.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import signal
import socket
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import NoReturn

import psutil
import torch.distributed as dist

from pad_dist.runtime.entry import LOST_RANK_STATUS, print_error

PULSE_S = 1.0
SILENT_S = 4.0
"""A rank that has published nothing for so long is dead or stopped."""


@dataclass(frozen=True)
class Heartbeat:
    """What a rank's main thread does since its newest heartbeat."""

    rank: int
    host: str
    pid: int
    number: int
    doing: str
    step: int | None
    """Training steps that are done; None before the first of this launch."""

    def __str__(self) -> str:
        done = "no step" if self.step is None else f"step {self.step}"
        return f"rank {self.rank} ({self.host}, pid {self.pid}; {done} done, then: {self.doing})"


@dataclass(frozen=True)
class LastWord:
    """How the first rank to end did so."""

    rank: int
    status: int


class Watchdog:
    """The heartbeats of this rank; after `open` also its threads."""

    def __init__(self, rank: int, world_size: int, first_step_timeout_s: float, step_timeout_s: float) -> None:
        self._rank, self._world_size = rank, world_size
        self._timeouts = first_step_timeout_s, step_timeout_s
        self._heartbeat = Heartbeat(rank, socket.gethostname(), os.getpid(), 0, "starts", None)
        self._since, self._timeout = time.monotonic(), first_step_timeout_s
        self._closed, self._wake, self._answered = threading.Event(), threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []
        self._ending = threading.Lock()
        self._looking = False
        self._host: Heartbeat | None = None
        self._heard: float = math.inf
        self._seen: dict[int, tuple[str, float]] = {}
        self._word: LastWord | None = None
        self._first_word: LastWord | None = None
        self._left = 0

    def heartbeat(self, doing: str, *, patient: bool = False) -> None:
        """Report progress. What is patient, and all before the first step is done, may last as long as that one."""
        self._heartbeat = replace(self._heartbeat, number=self._heartbeat.number + 1, doing=doing)
        self._since, self._timeout = (
            time.monotonic(),
            self._timeouts[0 if patient or self._heartbeat.step is None else 1],
        )

    def step_done(self, step: int) -> None:
        """Report that `step` training steps are done."""
        self._heartbeat = replace(self._heartbeat, step=step)
        self.heartbeat("goes on to the next batch")
        self._wake.set()

    def open(self) -> None:
        """Start the threads of a rank that has joined the others. Collective."""
        loops: list[Callable[[], None]] = [self._watch_progress]
        if self._world_size > 1:
            self._heard = time.monotonic()
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            self._store = watchdog_store(dist.TCPStore(address, port, is_master=False))
            self._store.set(str(self._rank), self._record(0))
            dist.barrier()
            if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
                self._host = self._first()
            loops.append(self._publish)
        self._threads = [threading.Thread(target=loop, daemon=True) for loop in loops]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the threads: from now on nobody watches this rank."""
        self._closed.set()
        self._wake.set()
        for thread in self._threads:
            thread.join(PULSE_S)

    def is_first_to_end(self, status: int) -> bool:
        """Tell the others that the launch is over, and how; False where another rank has told it before."""
        if self._world_size == 1:
            return True
        self._word = LastWord(self._rank, status)
        self._wake.set()
        self._answered.wait(SILENT_S)
        return self._first_word in (None, self._word)

    def wait_for_others(self) -> None:
        """After `is_first_to_end`: let the others read it, who may lose the store with this process."""
        until = time.monotonic() + SILENT_S
        while self._left < self._world_size - 1 and self._threads[-1].is_alive() and time.monotonic() < until:
            self._wake.set()
            time.sleep(0.05)

    def end_where_a_rank_is_lost(self, error: BaseException) -> None:
        """End the process after an error of a collective, if its reason is that other ranks are gone."""
        lost = self._silent()
        if lost and self._first_word is None:
            reason = textwrap.shorten(f"{type(error).__name__}: {error}", 200)
            self._end(lost, f"no sign of life for {SILENT_S:.0f} s, it died or was stopped ({reason})")

    def _watch_progress(self) -> None:
        launchers = _launchers()
        while not self._closed.wait(0.25):
            if launchers != _parents(len(launchers)):
                # Nobody waits for this process any more: end as by a signal.
                os.kill(os.getpid(), signal.SIGTERM)
                launchers = []
            if self._host and time.monotonic() - self._heard > 2 * SILENT_S and (lost := self._silent()):
                self._end(lost, "cannot be reached")
            if time.monotonic() - self._since > self._timeout:
                self._end_without_progress()

    def _end_without_progress(self) -> NoReturn:
        what = f"no progress for {self._timeout:.0f} s"
        if lost := self._silent():
            self._end(lost, f"{what}, it died or was stopped")
        heartbeats = [_heartbeat_of(record) for record, _ in self._seen.values()] or [self._heartbeat]
        behind = [
            heartbeat
            for heartbeat in heartbeats
            if heartbeat.number == min(heartbeat.number for heartbeat in heartbeats)
        ]
        if self._heartbeat in behind:
            faulthandler.dump_traceback()
        self._end(behind, f"{what}, it hangs")

    def _publish(self) -> None:
        pulse = 0
        while not self._closed.is_set():
            pulse += 1
            try:
                self._store.set(str(self._rank), self._record(pulse))
                self._follow_the_first_to_end()
                if self._host:
                    self._host = self._first()
                if self._looking:
                    self._look()
            except RuntimeError:  # the store is gone with its host
                return
            self._heard = time.monotonic()
            self._wake.wait(PULSE_S)
            self._wake.clear()

    def _follow_the_first_to_end(self) -> None:
        if self._word is not None:
            word = json.dumps(asdict(self._word))
            self._first_word = LastWord(**json.loads(self._store.compare_set("end", "", word)))
            self._answered.set()
            self._left = self._store.add("left", 0)
        elif self._store.check(["end"]):
            self._first_word = LastWord(**json.loads(self._store.get("end")))
            self._store.add("left", 1)
            _exit(self._first_word.status)

    def _look(self) -> None:
        ranks = range(self._world_size)
        for rank, content in zip(ranks, self._store.multi_get([str(rank) for rank in ranks]), strict=True):
            record = content.decode()
            if self._seen.get(rank, ("", 0.0))[0] != record:
                self._seen[rank] = record, time.monotonic()

    def _first(self) -> Heartbeat:
        return _heartbeat_of(self._store.get("0"))

    def _silent(self) -> list[Heartbeat]:
        """Look long enough to tell which ranks are dead or stopped; the host of the store, if it does not answer."""
        if self._world_size == 1:
            return []
        self._looking = True
        self._wake.set()
        time.sleep(SILENT_S + PULSE_S)
        recent = time.monotonic() - SILENT_S
        if self._heard < recent:
            return [self._host] if self._host else []
        return [_heartbeat_of(record) for record, at in self._seen.values() if at < recent]

    def _end(self, lost: list[Heartbeat], what: str) -> NoReturn:
        """Say which ranks are lost and end. The first rank that is not lost speaks; the others give it time."""
        with self._ending:
            if self._rank != min({*range(self._world_size)} - {heartbeat.rank for heartbeat in lost}, default=0):
                time.sleep(3 * SILENT_S)
            reachable = time.monotonic() - self._heard < SILENT_S
            if not reachable or self.is_first_to_end(LOST_RANK_STATUS):
                everyone = len(lost) == self._world_size > 1
                print_error(f"{f'every rank, as {lost[0]}' if everyone else ', '.join(map(str, lost))}: {what}")
                if reachable:
                    self.wait_for_others()
            _exit(LOST_RANK_STATUS)

    def _record(self, pulse: int) -> str:
        return json.dumps({"pulse": pulse, "heartbeat": asdict(self._heartbeat)})


def watchdog_store(store: dist.Store) -> dist.Store:
    """Where ranks write their heartbeats in the store that they meet by."""
    return dist.PrefixStore("pad_dist_watchdog", store)


def last_step(store: dist.Store, world_size: int) -> int | None:
    """The newest training step that any rank has reported done; None where none has."""
    known = [str(rank) for rank in range(world_size) if store.check([str(rank)])]
    steps = [_heartbeat_of(store.get(rank)).step for rank in known]
    return max((step for step in steps if step is not None), default=None)


def _heartbeat_of(record: str | bytes) -> Heartbeat:
    return Heartbeat(**json.loads(record)["heartbeat"])


def _launchers() -> list[int]:
    """What has started this rank: the parent; for deepspeed also the command before it, which a user signals."""
    if "MASTER_PORT" not in os.environ:
        return []
    parents = psutil.Process().parents()
    whole = len(parents) > 1 and all("deepspeed" in " ".join(parent.cmdline()) for parent in parents[:2])
    return _parents(2 if whole else 1)


def _parents(count: int) -> list[int]:
    return [parent.pid for parent in psutil.Process().parents()[:count]] if count else []


def _exit(status: int) -> NoReturn:
    """End this process from any thread."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
