"""`pad-dist compare`: build each dataset, do the runs that are not done, write the document."""

from __future__ import annotations

from collections.abc import Callable

from pad_dist import storage
from pad_dist.compare.config import load_comparison
from pad_dist.compare.document import write_document
from pad_dist.compare.jobs import Job, data_jobs, run_jobs
from pad_dist.compare.results import collect
from pad_dist.compare.schedule import run_all

Say = Callable[[str], None]


def print_jobs(path: str) -> None:
    """Print the commands of a comparison, each after those that it can use the work of."""
    comparison = load_comparison(path)
    data = data_jobs(comparison)
    for job in (*data, *run_jobs(comparison, data)):
        print(job.line())


def compare(path: str, say: Say, *, report_only: bool = False) -> list[Job]:
    """Do what is not done and write the document; gives the jobs that failed.

    Raises:
        UserError: the comparison or a run config is wrong, or a result file is damaged.
        SystemExit: after a signal.
    """
    comparison = load_comparison(path)
    data = data_jobs(comparison)
    runs = run_jobs(comparison, data)  # tells a mistake in any config before any work
    failed: list[Job] = []
    if not report_only:
        failed = run_all([(job, {}) for job in _waiting(data, say)], 1, say)
        without = {job.dataset for job in failed}
        runs = run_jobs(comparison, data)
        able = [job for job in runs if job.dataset not in without]
        failed += run_all([(job, job.stages()) for job in _waiting(able, say)], comparison.processes, say)
    text = write_document(comparison, path, collect(comparison, runs))
    storage.write_bytes(comparison.report, text.encode())
    say(f"report: {comparison.report}")
    return failed


def _waiting(jobs: list[Job], say: Say) -> list[Job]:
    done = [job for job in jobs if job.finished()]
    for job in done:
        say(f"{job.name}: already done")
    return [job for job in jobs if job not in done]
