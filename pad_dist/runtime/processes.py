"""Child processes that end together: a failure of one ends the others, and all receive the parent's signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pad_dist.runtime.entry import PREEMPTED_STATUS, print_preempted

GRACE_S = 15.0
"""Seconds that the others have to end by themselves, and to say why, after one has failed."""


@dataclass(frozen=True)
class Failure:
    """The first process that failed, at `place` in the list; a negative status is the number of a signal."""

    place: int
    pid: int
    status: int

    def __str__(self) -> str:
        return status_text(self.status)


def run_children(commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]]) -> Failure | None:
    """Run commands side by side, each with its additional environment variables, until all have ended.

    SIGTERM or SIGINT asks them to end, and they may take the time they need. A second signal kills them.

    Raises:
        SystemExit: with PREEMPTED_STATUS, after a signal.
    """
    failure = None
    with signals() as received:
        pairs = zip(commands, environments, strict=True)
        children = [subprocess.Popen(command, env={**os.environ, **variables}) for command, variables in pairs]
        sent, deadline = None, float("inf")
        while living := [child for child in children if child.poll() is None]:
            if failure is None:
                failure = _first_failure(children)
                deadline = time.monotonic() + GRACE_S if failure else deadline
            kill = len(received) > 1 or time.monotonic() > deadline
            wanted = signal.SIGKILL if kill else signal.SIGTERM if received or failure else None
            if wanted not in (None, sent):
                for child in living:
                    child.send_signal(wanted)
                sent = wanted
            time.sleep(0.05)
        if received:
            print_preempted()
            sys.exit(PREEMPTED_STATUS)
    return failure or _first_failure(children)


def status_text(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f"exit status {status}"
    perhaps = " (is there enough memory?)" if status == -signal.SIGKILL else ""
    return f"{signal.Signals(-status).name}{perhaps}"


def _first_failure(children: Sequence[subprocess.Popen[bytes]]) -> Failure | None:
    failed = ((place, child) for place, child in enumerate(children) if child.returncode)
    return next((Failure(place, child.pid, child.returncode) for place, child in failed), None)


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collect the SIGTERM and SIGINT that arrive in the block; inside it they end nothing by themselves."""
    received: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda got, frame: received.append(got)) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
