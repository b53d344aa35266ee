"""Runs side by side: a stage that several share is trained by one of them while the others wait."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pad_dist import storage
from pad_dist.compare.jobs import Job
from pad_dist.runtime.entry import PREEMPTED_STATUS, print_preempted
from pad_dist.runtime.processes import signals, status_text
from pad_dist.stages.reuse import finished_in

_POLL_S = 0.2
Stages = dict[str, str]
"""{stage: its fingerprint}."""


@dataclass(frozen=True)
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    stages: Stages
    started: float

    def claims(self) -> set[tuple[str, str]]:
        """The stages that it has yet to finish."""
        out = self.job.config.out
        return {(name, wanted) for name, wanted in self.stages.items() if not finished_in(out, name, wanted)}


def run_all(
    jobs: Sequence[tuple[Job, Stages]],
    processes: int,
    say: Callable[[str], None],
    done: Callable[[Job], None] = lambda job: None,
) -> list[Job]:
    """Run the jobs, the first ones first, `processes` at a time; those that failed. `done` is told each that did not.

    A job waits while another one that runs has yet to train a stage that both have: then it takes the stage from it.
    On SIGTERM or SIGINT the runs are told to end, and no other is started.

    Raises:
        SystemExit: with PREEMPTED_STATUS, after a signal.
    """
    waiting, running, failed = list(jobs), list[_Running](), list[Job]()
    with signals() as received, _none_left(running):
        passed_on = 0
        while running or (waiting and not received):
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                status, seconds = one.process.returncode, time.monotonic() - one.started
                if status == 0:
                    say(f"{one.job.name}: done in {seconds:.0f} s")
                    done(one.job)
                elif not received:
                    failed.append(one.job)
                    say(f"{one.job.name}: failed after {seconds:.0f} s by {status_text(status)}, see {one.job.log}")
            while not received and len(running) < processes and (ready := _ready(waiting, running)) is not None:
                job, stages = waiting.pop(ready)
                say(f"{job.name}: start")
                running.append(_Running(job, _start(job), stages, time.monotonic()))
            for _ in received[passed_on:]:
                passed_on += 1
                for one in running:
                    one.process.send_signal(signal.SIGTERM)
            time.sleep(_POLL_S)
        if received:
            print_preempted()
            sys.exit(PREEMPTED_STATUS)
    return failed


@contextmanager
def _none_left(running: list[_Running]) -> Iterator[None]:
    """Where `done` fails, no run goes on without its scheduler."""
    try:
        yield
    finally:
        for one in running:
            one.process.terminate()
        for one in running:
            one.process.wait()


def _ready(waiting: Sequence[tuple[Job, Stages]], running: Sequence[_Running]) -> int | None:
    """Place of the first job that no running one works for."""
    busy = {claim for one in running for claim in one.claims()}
    return next((place for place, (_, stages) in enumerate(waiting) if busy.isdisjoint(stages.items())), None)


def _start(job: Job) -> subprocess.Popen[bytes]:
    storage.make_directory(job.config.out)
    with open(job.log, "ab") as log:
        log.write(f"$ {job.line()}\n".encode())
        log.flush()
        # In a session of its own: a Ctrl-C reaches it once, through this process.
        return subprocess.Popen(
            job.command(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
