"""`pad-dist compare`: build each dataset, do the runs that are not done, write the documents."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pad_dist import storage
from pad_dist.compare.config import load_comparison
from pad_dist.compare.document import write_documents
from pad_dist.compare.jobs import Job, data_jobs, run_jobs
from pad_dist.compare.records import collect, is_recorded, keep_finished
from pad_dist.compare.schedule import run_all

Say = Callable[[str], None]


def print_jobs(path: str) -> None:
    """Print the commands of a comparison, each after those that it can use the work of."""
    comparison = load_comparison(path)
    data = data_jobs(comparison)
    for job in (*data, *run_jobs(comparison, data)):
        print(job.line())


def compare(path: str, say: Say, *, report_only: bool = False) -> list[Job]:
    """Do the runs that have no record, record those that are finished, and write the documents; gives what failed.

    Raises:
        UserError: the comparison or a run config is wrong, or a result file is damaged.
        SystemExit: after a signal.
    """
    comparison = load_comparison(path)
    data = data_jobs(comparison)
    runs = run_jobs(comparison, data)  # tells a mistake in any config before any work
    failed: list[Job] = []
    keep = partial(keep_finished, comparison)
    if not report_only:
        asked = {job.dataset for job in runs if not is_recorded(comparison, job)}
        building = [job for job in data if job.dataset in asked]
        failed = run_all([(job, {}) for job in _waiting(building, Job.finished, say)], 1, say)
        runs = run_jobs(comparison, data)
    for job in runs:
        keep(job)  # of a call that was cut
    if not report_only:
        without = {job.dataset for job in failed}
        able = [job for job in runs if job.dataset not in without]
        waiting = _waiting(able, partial(is_recorded, comparison), say)
        failed += run_all([(job, job.stages()) for job in waiting], comparison.processes, say, keep)
    for page, text in write_documents(comparison, path, collect(comparison, runs)).items():
        storage.write_bytes(page, text.encode())
    say(f"report: {comparison.report}")
    return failed


def _waiting(jobs: list[Job], done: Callable[[Job], bool], say: Say) -> list[Job]:
    waiting = []
    for job in jobs:
        if done(job):
            say(f"{job.name}: already done")
        else:
            waiting.append(job)
    return waiting
