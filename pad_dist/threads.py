"""Threads of a rank; imported before torch, whose OpenMP reads the environment once."""

from __future__ import annotations

import os


def limit_threads() -> None:
    """One OpenMP thread per rank that does not spin while it waits, unless the user says otherwise.

    Several ranks on few cores run many times slower when idle threads spin.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
