"""`pad-dist run`: raw events to report, one resumable step after the other.

Each step is its own process, as it would be on a cluster: the Spark jobs, then the launchers on local ranks. A step
is skipped if its output exists and was made from the same settings and input.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pad_dist import storage
from pad_dist.config import Config
from pad_dist.dataset.manifest import read_manifest
from pad_dist.dataset.reader import MADE_BY, Dataset
from pad_dist.errors import UserError
from pad_dist.evaluation.report import build_report, write_report
from pad_dist.pipeline.steps import (
    DATA,
    Run,
    Step,
    data_steps,
    is_stage,
    last_steps,
    model_steps,
    pinned,
    read_evaluation,
)
from pad_dist.runtime.doctor import diagnose
from pad_dist.runtime.environment import environment
from pad_dist.stages.warm_start import find_warm_start


def run(
    config: Config,
    config_path: str,
    overrides: list[str],
    say: Callable[[str], None],
    *,
    until: str = "",
    reuse: str = "",
) -> dict[str, Any] | None:
    """Do what is not yet done and return the report, also left at `<out>/report.json`.

    Args:
        until: the last step to take: "data", all before the first stage, a stage or "evaluate"; then no report is made.
        reuse: see `Run`.

    Raises:
        UserError: the environment is wrong, there is no step `until`, or a step of the run failed.
        SystemExit: with status 2, where a step has told the user's mistake; with PREEMPTED_STATUS, after a signal; with
            that of a failed rank.
    """
    _check_machine(config)
    # JSON is YAML too, and keeps a name such as 2024 a string.
    this = Run(config, ("--config", config_path, *overrides, f"out={json.dumps(config.out)}"), reuse)
    known = (DATA, *(spec.name for spec in this.stages), "evaluate")
    if until and until not in known:
        raise UserError(f"the run has no step {until}: give --until one of {', '.join(known)}")
    if config.warm_start:
        for spec in this.stages:
            find_warm_start(spec)  # told before hours of ETL
    timings_url = f"{config.out}/timings.json"
    timings: dict[str, float] = storage.read_json(timings_url) if storage.exists(timings_url) else {}

    def do(steps: list[Step]) -> None:
        for step in steps:
            if step.is_done():
                say(f"{step.name}: already done")
                continue
            say(f"{step.name}: start")
            storage.remove(f"{config.out}/report.json")  # it told of other steps
            started = time.monotonic()
            step.make()
            seconds = time.monotonic() - started
            if not is_stage(step.name):  # a stage keeps its own, of all its launches
                timings[step.name] = round(seconds, 2)
                storage.write_json(timings_url, timings)
            say(f"{step.name}: done in {seconds:.0f} s")

    do(data_steps(this))
    this = pinned(this)
    do(last_steps(model_steps(this, say), until))
    if until:
        return None
    report = _report(this, timings)
    write_report(config.out, report)
    return report


def _check_machine(config: Config) -> None:
    checks = diagnose(config.out, config.training.world_size, torchrec=config.sparse.backend == "torchrec")
    problems = [check for check in checks if not check.ok]
    if problems:
        raise UserError("; ".join(f"{check.name}: {check.actual}, {check.fix}" for check in problems))
    out = Path(config.out).absolute()
    nearest = next(path for path in (out, *out.parents) if path.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise UserError(f"cannot write to {config.out}, {nearest} is no directory or read-only: choose another --out")


def _report(this: Run, timings: dict[str, float]) -> dict[str, Any]:
    config, last = this.config, this.stages[-1]
    scores = {spec.name: (read_evaluation(spec) or {})["scores"] for spec in this.stages if spec.evaluated}
    # A stage may have been trained by an earlier call, elsewhere.
    results = {spec.name: storage.read_json(spec.result_url) for spec in this.stages}
    manifest = read_manifest(config.dataset, MADE_BY)
    content = {"hash": manifest.content_hash(), "version": Dataset.open(config.dataset).version}
    return build_report(
        dataset={**manifest.counts, "bin_cuts": manifest.parameters["bin_cuts"], **content},
        method=config.method,
        stages={spec.name: scores[spec.name][spec.main_scorer] for spec in this.stages if spec.evaluated},
        experts={name: scores[last.name][name] for name in last.experts if len(last.experts) > 1},
        popularity=scores[last.name]["popularity"],
        timings_s=timings | {stage: result["seconds"] for stage, result in results.items()},
        environment={
            **environment(config.training.world_size),
            "stages": {stage: result["environment"] for stage, result in results.items()},
        },
    )
