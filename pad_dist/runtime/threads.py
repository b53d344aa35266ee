"""Threads of a rank, and what torch may log; imported before torch, which reads the environment once."""

from __future__ import annotations

import os


def limit_threads() -> None:
    """One OpenMP thread per rank that does not spin while it waits, unless the user says otherwise.

    Several ranks on few cores run many times slower when idle threads spin.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # When a rank is lost, a C++ stack trace would hide the line that names it.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
