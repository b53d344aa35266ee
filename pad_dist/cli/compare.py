"""Methods compared on the same data, and settings tuned on validation."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pad_dist.runtime.entry import print_error, user_errors


def compare(
    config: Annotated[str, typer.Option("--config", help="comparison YAML")],
    report_only: Annotated[
        bool, typer.Option("--report-only", help="write the documents from the existing records")
    ] = False,
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


def tune(
    config: Annotated[str, typer.Option("--config", help="run YAML")],
    space: Annotated[str, typer.Option("--space", help="YAML: config key -> {low, high, log, int} or {choices}")],
    trials: Annotated[int, typer.Option(min=1, help="how many in all, those of earlier calls included")],
    out: Annotated[str, typer.Option("--out", help="directory of the study and its trials")],
    stage: Annotated[str, typer.Option(help="whose validation hr@10 is to grow; default: the last")] = "",
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[section.key=value]...")] = None,
) -> None:
    """Search config values on validation alone; writes the best as overrides."""
    from pad_dist.compare import tune as module

    with user_errors():
        best = module.tune(
            config,
            space,
            trials=trials,
            stage=stage,
            out=out,
            overrides=overrides or [],
            say=lambda text: print(text, flush=True),
        )
    print(f"best of {best['trials']} trials: {best['stage']} validation hr@10 {best['valid hr@10']:.4f}")
    print(" ".join(best["overrides"]))
    print(f"best: {out}/best.yaml")
