"""One run at a time writes a directory: a LOCK file that its holder renews."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from pad_dist import storage
from pad_dist.distributed.context import DistributedContext
from pad_dist.errors import UserError

STALE_S = 60.0
"""A lock that was not renewed for so long is nobody's; its holder renews it four times as often."""


@contextmanager
def locked(directories: Sequence[str], run: str, context: DistributedContext) -> Iterator[None]:
    """Hold the directories for this run, on all ranks. Collective.

    Raises:
        UserError: another run holds one, naming it.
    """
    with ExitStack() as locks:

        def take() -> str:
            for directory in directories:
                locks.enter_context(_lock(storage.join(directory, "LOCK"), run))
            return ""

        context.from_first(take)
        yield


@contextmanager
def _lock(url: str, run: str) -> Iterator[None]:
    _take(url, _mine(run))
    over = threading.Event()

    def renew() -> None:
        while not over.wait(STALE_S / 4):
            # A store that does not answer now will be asked again.
            with suppress(Exception):
                storage.write_json(url, _mine(run))

    thread = threading.Thread(target=renew, name=f"renew {url}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        storage.remove(url)


def _take(url: str, mine: dict[str, Any]) -> None:
    fs, path = storage.filesystem(url)
    content = json.dumps(mine).encode()
    if isinstance(fs, LocalFileSystem):
        fs.makedirs(os.path.dirname(path), exist_ok=True)
        with suppress(FileExistsError), open(path, "xb") as file:
            file.write(content)
            return
    if storage.exists(url):
        _check_free(url)
    storage.write_bytes(url, content)
    # If two processes take a free lock at the same moment, the later one has it.
    if storage.read_bytes(url) != content:
        _check_free(url)


def _check_free(url: str) -> None:
    try:
        holder = json.loads(storage.read_bytes(url))
    except ValueError:
        return  # its holder died while it wrote it
    age = time.time() - holder["time"]
    here = holder["host"] == socket.gethostname()
    if age > STALE_S or (here and (holder["pid"] == os.getpid() or not _alive(holder["pid"]))):
        return
    raise UserError(
        f"{url.rpartition('/')[0]} is written by run {holder['run']}, process {holder['pid']} on {holder['host']}, "
        f"since {holder['since']}: wait for it, or use another --out (a dead run's lock is free after {STALE_S:.0f} s)"
    )


def _mine(run: str) -> dict[str, Any]:
    return {"run": run, "host": socket.gethostname(), "pid": os.getpid(), "since": _STARTED, "time": time.time()}


_STARTED = time.strftime("%Y-%m-%d %H:%M:%S")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
