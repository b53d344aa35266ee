"""The steps of a run: each knows the cache key of its output, and how to make it."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from typing import Any, get_args

from pad_dist import storage
from pad_dist.config import Config, StageName
from pad_dist.dataset import versions
from pad_dist.dataset.lineage import lineage_of
from pad_dist.dataset.manifest import read_manifest
from pad_dist.dataset.reader import MADE_BY, Dataset
from pad_dist.dataset.synthetic import write_synthetic
from pad_dist.dataset.text_table import has_text
from pad_dist.distributed.context import device_kind
from pad_dist.distributed.local_ranks import run_ranks
from pad_dist.errors import UserError
from pad_dist.runtime.entry import USER_ERROR_STATUS
from pad_dist.runtime.processes import run_children
from pad_dist.stages.fingerprint import evaluation_cache_key, fingerprint, is_trained, reads_text
from pad_dist.stages.methods import resolve_stages
from pad_dist.stages.reuse import finished_elsewhere, take_over
from pad_dist.stages.spec import StageSpec

DATA = "data"
"""Stands for all steps before the first stage."""


@dataclass(frozen=True)
class Run:
    """One `pad-dist run`: the config and the arguments that make a child process read the same.

    `reuse`: a directory; a stage that a run below it has trained with these settings and data is copied.
    """

    config: Config
    arguments: tuple[str, ...]
    reuse: str = ""

    @cached_property
    def stages(self) -> tuple[StageSpec, ...]:
        """Its stages in their order."""
        return resolve_stages(self.config)


@dataclass(frozen=True)
class Step:
    """A named part of a run.

    Attributes:
        cache_key: digest of all that its output would be made from.
        existing_key: that of the output that is there; None: there is none.
        make: makes the output.
    """

    name: str
    cache_key: Callable[[], str]
    existing_key: Callable[[], str | None]
    make: Callable[[], None]

    def is_done(self) -> bool:
        """Whether its output exists, made from the same settings and input."""
        return self.existing_key() == self.cache_key()


def data_steps(run: Run) -> list[Step]:
    """The steps that make the dataset."""
    config = run.config
    if versions.root_of(config.dataset) != config.dataset:
        return []  # one version is named: it stays as it is
    is_synthetic = config.data.synthetic is not None and config.data.interactions.startswith(f"{config.out}/raw/")
    return [*([_synthetic(config)] if is_synthetic else []), _etl(run)]


def pinned(run: Run) -> Run:
    """The run on the version that is current now, whatever is published until it ends."""
    dataset = versions.resolve(run.config.dataset)
    arguments = (*run.arguments, f"dataset={json.dumps(dataset)}")
    return replace(run, config=run.config.model_copy(update={"dataset": dataset}), arguments=arguments)


def model_steps(run: Run, say: Callable[[str], None]) -> list[Step]:
    """The steps after the dataset: texts, stages, evaluation."""
    dataset = Dataset.open(run.config.dataset)
    evaluated = [spec for spec in run.stages if spec.evaluated]
    evaluate = Step(
        "evaluate",
        lambda: _digest(*(evaluation_cache_key(spec) for spec in evaluated)),
        lambda: _digest(*((read_evaluation(spec) or {}).get("cache_key") for spec in evaluated)),
        lambda: _launch(run, "evaluate", say),
    )
    embedding = [_embedding(run)] if any(reads_text(spec, dataset) for spec in run.stages) else []
    return [*embedding, *(_train(run, spec, say) for spec in run.stages), evaluate]


def last_steps(steps: list[Step], until: str) -> list[Step]:
    """The steps up to `until`, see `pad_dist.pipeline.run.run`; all of them for ""."""
    if until == DATA:
        return list(takewhile(lambda step: not is_stage(step.name), steps))
    return steps[: [step.name for step in steps].index(until) + 1] if until else steps


def is_stage(name: str) -> bool:
    """Whether a step trains a stage."""
    return name in get_args(StageName)


def read_evaluation(spec: StageSpec) -> dict[str, Any] | None:
    """What the evaluation of a stage left; None if it left nothing, or no target ranks beside it."""
    url, beside = f"{spec.directory}/evaluation.json", f"{spec.directory}/target_ranks.safetensors"
    return dict(storage.read_json(url)) if storage.exists(url) and storage.exists(beside) else None


def _etl(run: Run) -> Step:
    config = run.config

    def existing_key() -> str | None:
        version = versions.current(config.dataset)
        if version is None:
            return None
        lineage = read_manifest(versions.version_url(config.dataset, version), MADE_BY).lineage
        return _digest({name: lineage.get(name) for name in ("urls", "inputs", "settings")})

    return Step(
        "build_sequences",
        lambda: _digest(lineage_of(config.data)),
        existing_key,
        lambda: _run_spark_job(run, "build_sequences"),
    )


def _embedding(run: Run) -> Step:
    config = run.config
    return Step(
        "embed_items",
        lambda: "whole",
        lambda: "whole" if has_text(config.dataset, config.text) else None,
        lambda: _run_spark_job(run, "embed_items"),
    )


def _synthetic(config: Config) -> Step:
    settings = config.data.synthetic
    assert settings is not None
    raw = f"{config.out}/raw"
    made_from = storage.join(raw, "made_from.json")
    key = _digest(settings.model_dump(), config.seed)

    def make() -> None:
        storage.remove(made_from)
        write_synthetic(raw, events=settings.events, users=settings.users, items=settings.items, seed=config.seed)
        storage.write_json(made_from, {"cache_key": key})

    def existing_key() -> str | None:
        return storage.read_json(made_from).get("cache_key") if storage.exists(made_from) else None

    return Step("synthetic", lambda: key, existing_key, make)


def _train(run: Run, spec: StageSpec, say: Callable[[str], None]) -> Step:
    def make() -> None:
        source = finished_elsewhere(spec, run.reuse) if run.reuse else None
        if source:
            say(f"{spec.name}: trained already in {source}, copied")
            take_over(spec, source)
        else:
            _launch(run, spec.name, say)

    def existing_key() -> str | None:
        # The stage keeps its own fingerprint: a launcher may have trained it, here or on a cluster.
        return fingerprint(spec) if is_trained(spec) else None

    return Step(spec.name, lambda: fingerprint(spec), existing_key, make)


def _run_spark_job(run: Run, job: str) -> None:
    command = [sys.executable, "-m", f"spark_jobs.{job}", *run.arguments]
    failure = run_children([command], [{}])
    if failure is None:
        return
    if failure.status == USER_ERROR_STATUS:
        # The job has said in one line what is wrong.
        sys.exit(failure.status)
    raise UserError(f"{job} ended by {failure}, see its message above; the command was: {shlex.join(command)}")


def _launch(run: Run, launcher: str, say: Callable[[str], None]) -> None:
    """Run a launcher on local ranks."""
    training = run.config.training
    command = [sys.executable, "-u", "-m", f"launchers.{launcher}", *run.arguments]
    # Left to guess, DeepSpeed warns of it.
    environment = {"DS_ACCELERATOR": device_kind(training)}
    run_ranks(launcher, command, training.world_size, training.restarts, say, **environment)


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
