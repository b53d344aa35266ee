"""One line of a plan: a name and its bytes on a rank."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """Bytes of one kind, on the device that the rank works on or in its host's memory. On a CPU both are one."""

    name: str
    bytes: int
    on_host: bool = False


def total(lines: list[Line], *, on_host: bool) -> int:
    """Bytes of the lines of one place."""
    return sum(line.bytes for line in lines if line.on_host == on_host)
