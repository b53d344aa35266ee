"""What a result was made with: versions, commit and machine, recorded with its numbers."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

REPORTED = ("torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "deepspeed", "pyspark", "transformers", "numpy")


def environment(world_size: int) -> dict[str, Any]:
    """Facts about the environment of this process, as JSON values."""
    return {
        "python": platform.python_version(),
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "world_size": world_size,
        "commit": _commit(),
        "packages": {name: d.version for d in distributions() if (name := d.name.replace("_", "-")) in REPORTED},
    }


def _commit() -> str | None:
    """The commit of this checkout; None without a checkout or without git."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return answer.stdout.strip() or None
