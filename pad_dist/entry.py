"""How every command begins and ends: errors of the user's are one line, and every end has its exit status."""

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
"""A mistake of the user's: the same command fails again."""
LOST_RANK_STATUS = 69
"""Another rank died, or one made no progress within its timeout: the same command may go on."""
STOPPED_STATUS = 75
"""Ended by SIGTERM or SIGINT, what was trained is kept: the same command goes on."""


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn a UserError into one line on stderr and exit status 2.

    Of several ranks that find the same mistake before they have met, the first one tells; the launcher ends the others
    while they wait.
    """
    try:
        yield
    except UserError as error:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(5)
        print_error(error)
        sys.exit(USER_ERROR_STATUS)


def print_error(error: object) -> None:
    """One line on stderr, which names the rank where it is not the first."""
    rank = os.environ.get("RANK", "0")
    where = "" if rank == "0" else f" (rank {rank})"
    print(f"pad-dist: error{where}: {error}", file=sys.stderr, flush=True)


def print_stopped() -> None:
    """The last line of what a signal has ended."""
    print("pad-dist: stopped by a signal: the same command goes on", file=sys.stderr, flush=True)


def end_on_signals() -> None:
    """Let SIGTERM and SIGINT end this process where nothing is lost by it, with STOPPED_STATUS."""

    def end(number: int, frame: FrameType | None) -> None:
        print_stopped()
        sys.exit(STOPPED_STATUS)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
