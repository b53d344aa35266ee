"""Start a function on ranks as a launcher does, each its own process that may end in any way."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.ranks import forkserver


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Launch:
    """Ranks that run `function(*args)`; what they print goes to the file `log`."""

    def __init__(self, log: Path, world_size: int, function: Callable[..., Any], *args: Any) -> None:
        self.log = log
        self._started = time.monotonic()
        context = forkserver()
        shared = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        places = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]
        self._ranks = [context.Process(target=_rank, args=(str(log), place, function, args)) for place in places]
        for rank in self._ranks:
            rank.start()

    def statuses(self, *, stopped: int | None = None, timeout: float = 100) -> list[int | None]:
        """Exit statuses when all but a stopped rank have ended, or time is up; None for a rank that is left."""
        for number, rank in enumerate(self._ranks):
            if number != stopped:
                rank.join(max(0.0, self._started + timeout - time.monotonic()))
        statuses = [rank.exitcode for rank in self._ranks]
        for rank in self._ranks:
            rank.kill()
            rank.join()
        return statuses

    def said(self) -> list[str]:
        """The lines that start with `pad-dist:`."""
        return [line for line in self.log.read_text().splitlines() if line.startswith("pad-dist:")]


def _rank(log: str, place: dict[str, str], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    with open(log, "a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    os.environ |= place
    function(*args)
