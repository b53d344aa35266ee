"""`pad-dist run`: raw events to report, one resumable step after the other.

Each step is its own process, as it would be on a cluster: the Spark jobs, then the
launchers on local ranks. A step is skipped when what it would make is there and was
made from the same settings and input.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from fsspec.core import has_magic

from pad_dist import storage
from pad_dist.config import STAGES, Config, StageName
from pad_dist.data.dataset import Dataset
from pad_dist.data.manifest import read_manifest
from pad_dist.data.synthetic import write_synthetic
from pad_dist.doctor import diagnose
from pad_dist.entry import USER_ERROR_STATUS
from pad_dist.errors import UserError
from pad_dist.evaluation.report import build_report, write_report
from pad_dist.sparse.tables import TableSpec, check_capacity
from pad_dist.stages.parts import MAIN_SCORER, PARTS, fingerprint, is_trained, stage_dir
from pad_dist.training.ranks import device_kind

REPORTED = ("torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "deepspeed", "pyspark", "transformers", "numpy")


@dataclass(frozen=True)
class Run:
    """One `pad-dist run`: the config and the arguments that make a child process read the same."""

    config: Config
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """A named part of a run.

    `mark` digests what it would be made from, `found` is the mark of what is there
    (None: nothing is), `make` makes it.
    """

    name: str
    mark: Callable[[], str]
    found: Callable[[], str | None]
    make: Callable[[], None]


def run(config: Config, config_path: str, overrides: list[str], say: Callable[[str], None]) -> dict[str, Any]:
    """Do what is not yet done and return the report, also left at `<out>/report.json`.

    Raises:
        UserError: the environment is wrong, or a step of the run failed.
        SystemExit: with status 2, where a step has told the user's mistake.
    """
    problems = [check for check in diagnose(config.out, config.training.world_size) if not check.ok]
    if problems:
        raise UserError("; ".join(f"{check.name}: {check.found}, {check.fix}" for check in problems))
    # JSON is YAML too, and keeps a name such as 2024 a string.
    this = Run(config, ("--config", config_path, *overrides, f"out={json.dumps(config.out)}"))
    timings = _Record(f"{config.out}/timings.json")
    marks = _Record(f"{config.out}/steps.json")
    for step in _steps(this, marks):
        mark = step.mark()
        if step.found() == mark:
            say(f"{step.name}: already done")
            continue
        say(f"{step.name}: start")
        storage.remove(f"{config.out}/report.json")  # it told of other steps
        started = time.monotonic()
        step.make()
        timings.put(step.name, round(time.monotonic() - started, 2))
        marks.put(step.name, mark)
        say(f"{step.name}: done in {timings.get(step.name):.0f} s")
    report = _report(config, timings.values())
    write_report(config.out, report)
    return report


def _steps(this: Run, marks: _Record) -> list[Step]:
    config = this.config
    steps = []
    if config.data.synthetic is not None and config.data.interactions.startswith(f"{config.out}/raw/"):
        steps.append(_synthetic(config, marks))
    manifest, text = f"{config.dataset}/manifest.json", f"{config.dataset}/text/manifest.json"
    steps.append(
        Step(
            "build_sequences",
            lambda: _digest(config.data.model_dump(exclude={"spark_master", "spark_conf"}), _inputs(config)),
            lambda: marks.get("build_sequences") if storage.exists(manifest) else None,
            lambda: _spark(this, "build_sequences"),
        )
    )
    steps.append(
        Step(
            "embed_items",
            lambda: _digest(config.text.model_dump(exclude={"center"}), Dataset.open(config.dataset).content_hash),
            lambda: marks.get("embed_items") if storage.exists(text) else None,
            lambda: _spark(this, "embed_items"),
        )
    )
    for stage in STAGES:
        steps.append(_train(this, stage))
    steps.append(
        Step(
            "evaluate",
            lambda: _digest(
                fingerprint(config, STAGES[-1]), config.evaluation.cold_max_frequency, config.training.world_size
            ),
            lambda: marks.get("evaluate") if all(storage.exists(_evaluation(config, s)) for s in STAGES) else None,
            lambda: _ranks(this, "evaluate"),
        )
    )
    return steps


def _synthetic(config: Config, marks: _Record) -> Step:
    settings = config.data.synthetic
    assert settings is not None
    return Step(
        "synthetic",
        lambda: _digest(settings.model_dump(), config.seed),
        lambda: marks.get("synthetic") if storage.exists(config.data.items) else None,
        lambda: write_synthetic(
            f"{config.out}/raw", events=settings.events, users=settings.users, items=settings.items, seed=config.seed
        ),
    )


def _train(this: Run, stage: StageName) -> Step:
    config = this.config

    def make() -> None:
        settings = config.stage(stage)
        rows = Dataset.open(config.dataset).items + 1
        spec = TableSpec(PARTS[stage].tables, rows, config.model.dim, settings.sparse_lr, settings.weight_decay)
        check_capacity(spec, config.sparse, config.training.world_size)
        _ranks(this, stage)

    def found() -> str | None:
        # The stage keeps its own mark: a launcher may have trained it, here or on a cluster.
        return fingerprint(config, stage) if is_trained(config, stage) else None

    return Step(stage, lambda: fingerprint(config, stage), found, make)


def _spark(this: Run, job: str) -> None:
    _child([sys.executable, "-m", f"spark_jobs.{job}", *this.arguments], job)


def _ranks(this: Run, launcher: str) -> None:
    spec = importlib.util.find_spec(f"launchers.{launcher}")
    assert spec is not None and spec.origin is not None
    deepspeed = str(Path(sys.executable).with_name("deepspeed"))
    place = ["--num_gpus", str(this.config.training.world_size), "--master_port", str(_free_port())]
    command = [deepspeed, "--quiet", *place, spec.origin, *this.arguments]
    _child(command, launcher, DS_ACCELERATOR=device_kind(this.config.training))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _child(command: list[str], step: str, **environment: str) -> None:
    status = subprocess.run(command, env={**os.environ, **environment}, check=False).returncode
    if status == USER_ERROR_STATUS:
        # The step has said in one line what is wrong.
        sys.exit(status)
    if status:
        raise UserError(
            f"{step} failed with exit status {status}, its message stands above; the command was: {shlex.join(command)}"
        )


def _inputs(config: Config) -> list[str]:
    """What the raw inputs are now: changes when a file does."""
    marks = []
    for url in filter(None, (config.data.interactions, config.data.items)):
        fs, path = storage.filesystem(url)
        for file in sorted(map(str, fs.glob(path) if has_magic(path) else fs.find(path))):
            marks.append(f"{file} {fs.ukey(file)}")
    return marks


def _report(config: Config, timings: dict[str, float]) -> dict[str, Any]:
    scores = {stage: storage.read_json(_evaluation(config, stage))["scores"] for stage in STAGES}
    last = scores["disentangle"]
    manifest = read_manifest(config.dataset, "pad-dist run")
    return build_report(
        dataset={**manifest.counts, "bin_cuts": manifest.parameters["bin_cuts"], "hash": manifest.content_hash()},
        stages={stage: scores[stage][MAIN_SCORER[stage]] for stage in STAGES},
        experts={name: last[name] for name in PARTS["disentangle"].experts},
        popularity=last["popularity"],
        timings_s=timings,
        environment=_environment(config),
    )


def _commit() -> str | None:
    """The commit of this checkout; None where there is none, or no git."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return answer.stdout.strip() or None


def _environment(config: Config) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "world_size": config.training.world_size,
        "commit": _commit(),
        "packages": {name: d.version for d in distributions() if (name := d.name.replace("_", "-")) in REPORTED},
    }


def _evaluation(config: Config, stage: StageName) -> str:
    return f"{stage_dir(config, stage)}/evaluation.json"


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class _Record:
    """A small JSON mapping on disk, published whole at every change."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._values: dict[str, Any] = storage.read_json(url) if storage.exists(url) else {}

    def get(self, name: str) -> Any:
        return self._values.get(name)

    def put(self, name: str, value: Any) -> None:
        self._values[name] = value
        storage.write_json(self._url, self._values)

    def values(self) -> dict[str, Any]:
        return dict(self._values)
