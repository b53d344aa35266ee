"""An object store that fails where a test says, in this process and in Spark's workers.

`failing:///path` is the local directory `/path`. The file that FAILING_STORE names
says what fails: an expression, and `stays` when nothing works from then on.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from urllib3.exceptions import ProtocolError


def fail(path: str, stays: bool = False) -> None:
    """Let the writing of files fail whose path holds `path`, an expression; "" lets none."""
    Path(os.environ["FAILING_STORE"]).write_text(json.dumps({"path": path, "stays": stays, "down": False}))


class FailingStore(LocalFileSystem):  # type: ignore[misc]  # fsspec is not typed
    """Fails with what an HTTP client raises, which is no OSError."""

    protocol = "failing"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return path.removeprefix("failing://").rstrip("/") if isinstance(path, str) else path

    def unstrip_protocol(self, name: str) -> str:
        return f"failing://{self._strip_protocol(name)}"

    def _check(self, path: str, writes: bool) -> None:
        control = Path(os.environ["FAILING_STORE"])
        state = json.loads(control.read_text())
        if writes and state["path"] and re.search(state["path"], path):
            state["down"] = state["stays"]
            control.write_text(json.dumps(state))
            raise ProtocolError(f"503 Service Unavailable: {path}")
        if state["down"]:
            raise ProtocolError(f"no answer: {path}")

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        self._check(path, "w" in mode)
        return super()._open(path, mode, **options)

    def info(self, path: str, **options: Any) -> Any:
        self._check(path, False)
        return super().info(path, **options)

    def ls(self, path: str, detail: bool = False, **options: Any) -> Any:
        self._check(path, False)
        return super().ls(path, detail, **options)

    def rm(self, path: Any, *arguments: Any, **options: Any) -> None:
        self._check(path, False)
        super().rm(path, *arguments, **options)
