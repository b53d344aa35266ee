"""Ending on a signal: at once where nothing is lost, else after the step, on all ranks together."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pad_dist.runtime.entry import PREEMPTED_STATUS


class Preempted(Exception):
    """All ranks have agreed to end because one of them was told to; what was trained is kept."""


class Preemption:
    """Whether this process was told to end, by SIGTERM or SIGINT."""

    def __init__(self) -> None:
        self.requested = False
        self._deferred = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals. Outside `defer` the first one ends the process; Ctrl-C and a launcher may send several."""
        before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def defer(self) -> None:
        """From now on a signal only sets `requested`: the steps taken are to be kept."""
        self._deferred = True

    def _receive(self, number: int, frame: FrameType | None) -> None:
        first, self.requested = not self.requested, True
        if first and not self._deferred:
            raise SystemExit(PREEMPTED_STATUS)
