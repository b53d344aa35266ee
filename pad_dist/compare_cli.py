"""Methods compared on the same data, and settings tuned on validation."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pad_dist.entry import print_error, user_errors


def compare(
    config: Annotated[str, typer.Option("--config", help="comparison YAML")],
    report_only: Annotated[bool, typer.Option("--report-only", help="write the document from what is there")] = False,
    print_jobs: Annotated[bool, typer.Option("--print-jobs", help="print the commands and run nothing")] = False,
) -> None:
    """Run every method on every data set with every seed, then write the document of results."""
    from pad_dist.compare import main

    with user_errors():
        if print_jobs:
            main.print_jobs(config)
            return
        failed = main.compare(config, lambda text: print(text, flush=True), report_only=report_only)
    for job in failed:
        print_error(f"{job.name} failed, see {job.log}")
    if failed:
        sys.exit(1)
