"""`pad-dist run`: raw events to report, one resumable step after the other.

Each step is its own process, as it would be on a cluster: the Spark jobs, then the launchers on local ranks. A step
is skipped when what it would make is there and was made from the same settings and input.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, get_args

from pad_dist import storage
from pad_dist.children import run_children
from pad_dist.config import Config, StageName
from pad_dist.data import versions
from pad_dist.data.dataset import MADE_BY, Dataset
from pad_dist.data.lineage import lineage_of
from pad_dist.data.manifest import read_manifest
from pad_dist.data.synthetic import write_synthetic
from pad_dist.data.text_table import has_text
from pad_dist.doctor import diagnose
from pad_dist.entry import USER_ERROR_STATUS
from pad_dist.environment import environment
from pad_dist.errors import UserError
from pad_dist.evaluation.report import build_report, write_report
from pad_dist.local_ranks import run_ranks
from pad_dist.stages.earlier import earlier
from pad_dist.stages.fingerprint import evaluation_mark, fingerprint, is_trained
from pad_dist.stages.parts import main_scorer, parts, ranked_stages, reads_text, stage_dir, stages
from pad_dist.stages.reuse import finished_elsewhere, take_over
from pad_dist.training.ranks import device_kind


@dataclass(frozen=True)
class Run:
    """One `pad-dist run`: the config and the arguments that make a child process read the same.

    `reuse`: a directory; a stage that a run below it has trained with these settings and data is taken from there.
    """

    config: Config
    arguments: tuple[str, ...]
    reuse: str = ""


@dataclass(frozen=True)
class Step:
    """A named part of a run.

    `mark` digests what it would be made from, `found` is the mark of what is there (None: nothing is), `make` makes it.
    """

    name: str
    mark: Callable[[], str]
    found: Callable[[], str | None]
    make: Callable[[], None]


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
        SystemExit: with status 2, where a step has told the user's mistake; with STOPPED_STATUS, after a signal; with
            that of a failed rank.
    """
    checks = diagnose(config.out, config.training.world_size, torchrec=config.sparse.backend == "torchrec")
    problems = [check for check in checks if not check.ok]
    if problems:
        raise UserError("; ".join(f"{check.name}: {check.found}, {check.fix}" for check in problems))
    there = next(path for path in (Path(config.out).absolute(), *Path(config.out).absolute().parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise UserError(f"cannot write to {config.out}, {there} is no directory or read-only: choose another --out")
    # JSON is YAML too, and keeps a name such as 2024 a string.
    this = Run(config, ("--config", config_path, *overrides, f"out={json.dumps(config.out)}"), reuse)
    _check_until(config, until)
    if config.continue_from:
        for stage in stages(config):
            earlier(config, stage)  # told before hours of ETL
    timings_url = f"{config.out}/timings.json"
    timings: dict[str, float] = storage.read_json(timings_url) if storage.exists(timings_url) else {}

    def do(steps: list[Step]) -> None:
        for step in steps:
            mark = step.mark()
            if step.found() == mark:
                say(f"{step.name}: already done")
                continue
            say(f"{step.name}: start")
            storage.remove(f"{config.out}/report.json")  # it told of other steps
            started = time.monotonic()
            step.make()
            seconds = time.monotonic() - started
            if not is_stage(step.name):  # a stage keeps its own, of all its parts
                timings[step.name] = round(seconds, 2)
                storage.write_json(timings_url, timings)
            say(f"{step.name}: done in {seconds:.0f} s")

    do(data_steps(this))
    this = pinned(this)
    do(last_steps(model_steps(this, say), until))
    if until:
        return None
    report = _report(this.config, timings)
    write_report(config.out, report)
    return report


def _check_until(config: Config, until: str) -> None:
    known = ("data", *stages(config), "evaluate")
    if until and until not in known:
        raise UserError(f"the run has no step {until}: give --until one of {', '.join(known)}")


def last_steps(steps: list[Step], until: str) -> list[Step]:
    """The steps up to `until`, see `run`; all of them for ""."""
    if until == "data":
        return list(takewhile(lambda step: not is_stage(step.name), steps))
    return steps[: [step.name for step in steps].index(until) + 1] if until else steps


def is_stage(name: str) -> bool:
    """Whether a step trains a stage."""
    return name in get_args(StageName)


def data_steps(this: Run) -> list[Step]:
    config = this.config
    if versions.root_of(config.dataset) != config.dataset:
        return []  # one version is named: it stays as it is
    raw = config.data.synthetic is not None and config.data.interactions.startswith(f"{config.out}/raw/")
    return [*([_synthetic(config)] if raw else []), _etl(this)]


def pinned(this: Run) -> Run:
    """The run on the version that is current now, whatever is published until it ends."""
    dataset = versions.resolve(this.config.dataset)
    arguments = (*this.arguments, f"dataset={json.dumps(dataset)}")
    return replace(this, config=this.config.model_copy(update={"dataset": dataset}), arguments=arguments)


def model_steps(this: Run, say: Callable[[str], None]) -> list[Step]:
    config, dataset = this.config, Dataset.open(this.config.dataset)
    ranked = ranked_stages(config)
    evaluate = Step(
        "evaluate",
        lambda: _digest(*(evaluation_mark(config, stage) for stage in ranked)),
        lambda: _digest(*((_evaluation(config, stage) or {}).get("mark") for stage in ranked)),
        lambda: _ranks(this, "evaluate", say),
    )
    embedding = [_embedding(this)] if any(reads_text(config, stage, dataset) for stage in stages(config)) else []
    return [*embedding, *(_train(this, stage, say) for stage in stages(config)), evaluate]


def _etl(this: Run) -> Step:
    config = this.config

    def found() -> str | None:
        version = versions.current(config.dataset)
        if version is None:
            return None
        lineage = read_manifest(versions.version_url(config.dataset, version), MADE_BY).lineage
        return _digest({name: lineage.get(name) for name in ("urls", "inputs", "settings")})

    return Step(
        "build_sequences", lambda: _digest(lineage_of(config.data)), found, lambda: _spark(this, "build_sequences")
    )


def _embedding(this: Run) -> Step:
    config = this.config
    return Step(
        "embed_items",
        lambda: "whole",
        lambda: "whole" if has_text(config.dataset, config.text) else None,
        lambda: _spark(this, "embed_items"),
    )


def _synthetic(config: Config) -> Step:
    settings = config.data.synthetic
    assert settings is not None
    raw = f"{config.out}/raw"
    made_from = storage.join(raw, "made_from.json")
    mark = _digest(settings.model_dump(), config.seed)

    def make() -> None:
        storage.remove(made_from)
        write_synthetic(raw, events=settings.events, users=settings.users, items=settings.items, seed=config.seed)
        storage.write_json(made_from, {"mark": mark})

    def found() -> str | None:
        return storage.read_json(made_from)["mark"] if storage.exists(made_from) else None

    return Step("synthetic", lambda: mark, found, make)


def _train(this: Run, stage: StageName, say: Callable[[str], None]) -> Step:
    config = this.config

    def make() -> None:
        source = finished_elsewhere(config, stage, this.reuse) if this.reuse else None
        if source:
            say(f"{stage}: trained already in {source}, taken from there")
            take_over(config, stage, source)
        else:
            _ranks(this, stage, say)

    def found() -> str | None:
        # The stage keeps its own mark: a launcher may have trained it, here or on a cluster.
        return fingerprint(config, stage) if is_trained(config, stage) else None

    return Step(stage, lambda: fingerprint(config, stage), found, make)


def _spark(this: Run, job: str) -> None:
    command = [sys.executable, "-m", f"spark_jobs.{job}", *this.arguments]
    failure = run_children([command], [{}])
    if failure is None:
        return
    if failure.status == USER_ERROR_STATUS:
        # The job has said in one line what is wrong.
        sys.exit(failure.status)
    raise UserError(f"{job} ended by {failure}, its message stands above; the command was: {shlex.join(command)}")


def _ranks(this: Run, launcher: str, say: Callable[[str], None]) -> None:
    training = this.config.training
    command = [sys.executable, "-u", "-m", f"launchers.{launcher}", *this.arguments]
    # Left to guess, DeepSpeed warns of it.
    environment = {"DS_ACCELERATOR": device_kind(training)}
    run_ranks(launcher, command, training.world_size, training.restarts, say, **environment)


def _report(config: Config, timings: dict[str, float]) -> dict[str, Any]:
    scores = {stage: (_evaluation(config, stage) or {})["scores"] for stage in ranked_stages(config)}
    # A stage may have been trained by an earlier call, elsewhere.
    results = {stage: storage.read_json(f"{stage_dir(config, stage)}/result.json") for stage in stages(config)}
    last = stages(config)[-1]
    experts = parts(config, last).experts
    manifest = read_manifest(config.dataset, MADE_BY)
    content = {"hash": manifest.content_hash(), "version": Dataset.open(config.dataset).version}
    return build_report(
        dataset={**manifest.counts, "bin_cuts": manifest.parameters["bin_cuts"], **content},
        method=config.method,
        stages={stage: found[main_scorer(config, stage)] for stage, found in scores.items()},
        experts={name: scores[last][name] for name in experts if len(experts) > 1},
        popularity=scores[last]["popularity"],
        timings_s=timings | {stage: result["seconds"] for stage, result in results.items()},
        environment={
            **environment(config.training.world_size),
            "stages": {stage: result["environment"] for stage, result in results.items()},
        },
    )


def _evaluation(config: Config, stage: StageName) -> dict[str, Any] | None:
    """What the evaluation of a stage left, None if it left nothing or, before there was one, no file of ranks."""
    url, whole = f"{stage_dir(config, stage)}/evaluation.json", f"{stage_dir(config, stage)}/ranks.safetensors"
    return dict(storage.read_json(url)) if storage.exists(url) and storage.exists(whole) else None


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
