"""How every command begins and ends: a user's error is one line, and every kind of end has its exit status."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pad_dist.errors import UserError

USER_ERROR_STATUS = 2
"""The user made a mistake: the same command fails again."""
LOST_RANK_STATUS = 69
"""Another rank died, or one made no progress within its timeout: the same command may resume the run."""
PREEMPTED_STATUS = 75
"""SIGTERM or SIGINT ended the run and its progress is saved: the same command resumes it."""


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn a UserError into one line on stderr and exit status 2.

    Several ranks may hit the same mistake before they have connected. Then the first rank reports it, and the launcher
    ends the others while they wait.
    """
    try:
        yield
    except UserError as error:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(5)
        print_error(error)
        sys.exit(USER_ERROR_STATUS)


def print_error(error: object) -> None:
    """Print one line on stderr; it names the rank unless it is the first."""
    rank = os.environ.get("RANK", "0")
    where = "" if rank == "0" else f" (rank {rank})"
    print(f"pad-dist: error{where}: {error}", file=sys.stderr, flush=True)


def print_preempted() -> None:
    """Print the last line of a process that a signal has ended."""
    print("pad-dist: stopped by a signal: the same command goes on", file=sys.stderr, flush=True)


def end_on_signals() -> None:
    """Let SIGTERM and SIGINT end this process with PREEMPTED_STATUS; for work that loses nothing by it."""

    def end(number: int, frame: FrameType | None) -> None:
        print_preempted()
        sys.exit(PREEMPTED_STATUS)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
