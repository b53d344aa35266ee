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
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

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

REPORTED = ("torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "deepspeed", "pyspark", "transformers", "numpy")


@dataclass(frozen=True)
class Run:
    """One `pad-dist run`: the config and the arguments that make a child process read the same."""

    config: Config
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """A named part of a run: what it would be made from (`mark`), and how to make it."""

    name: str
    mark: Callable[[], str]
    is_there: Callable[[], bool]
    make: Callable[[], None]


def run(config: Config, config_path: str, overrides: list[str], say: Callable[[str], None]) -> dict[str, Any]:
    """Do what is not yet done and return the report, also left at `<out>/report.json`.

    Raises:
        UserError: the environment or the input is wrong; a step of the run failed.
    """
    problems = [check for check in diagnose(config.out, config.training.world_size) if not check.ok]
    if problems:
        raise UserError("; ".join(f"{check.name}: {check.found}, {check.fix}" for check in problems))
    arguments = ("--config", config_path, *overrides, f"out={config.out}")
    this = Run(config, arguments)
    timings = _Record(f"{config.out}/timings.json")
    marks = _Record(f"{config.out}/steps.json")
    for step in _steps(this):
        mark = step.mark()
        if step.is_there() and marks.get(step.name) == mark:
            say(f"{step.name}: already done")
            continue
        say(f"{step.name}: start")
        started = time.monotonic()
        step.make()
        timings.put(step.name, round(time.monotonic() - started, 2))
        marks.put(step.name, mark)
        say(f"{step.name}: done in {timings.get(step.name):.0f} s")
    report = _report(config, timings.values())
    write_report(config.out, report)
    return report


def _steps(this: Run) -> list[Step]:
    config = this.config
    steps = []
    if config.data.synthetic is not None and config.data.interactions.startswith(f"{config.out}/raw/"):
        steps.append(_synthetic(config))
    manifest, text = f"{config.dataset}/manifest.json", f"{config.dataset}/text/manifest.json"
    steps.append(
        Step(
            "build_sequences",
            lambda: _digest(config.data.model_dump(exclude={"spark_master", "spark_conf"}), _inputs(config)),
            lambda: storage.exists(manifest),
            lambda: _spark(this, "build_sequences"),
        )
    )
    steps.append(
        Step(
            "embed_items",
            lambda: _digest(config.text.model_dump(exclude={"center"}), Dataset.open(config.dataset).content_hash),
            lambda: storage.exists(text),
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
            lambda: all(storage.exists(_evaluation(config, stage)) for stage in STAGES),
            lambda: _ranks(this, "evaluate"),
        )
    )
    return steps


def _synthetic(config: Config) -> Step:
    settings = config.data.synthetic
    assert settings is not None
    return Step(
        "synthetic",
        lambda: _digest(settings.model_dump(), config.seed),
        lambda: storage.exists(config.data.items),
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

    return Step(stage, lambda: fingerprint(config, stage), lambda: is_trained(config, stage), make)


def _spark(this: Run, job: str) -> None:
    _child([sys.executable, "-m", f"spark_jobs.{job}", *this.arguments], job)


def _ranks(this: Run, launcher: str) -> None:
    spec = importlib.util.find_spec(f"launchers.{launcher}")
    assert spec is not None and spec.origin is not None
    deepspeed = str(Path(sys.executable).with_name("deepspeed"))
    place = ["--num_gpus", str(this.config.training.world_size), "--master_port", str(_free_port())]
    _child([deepspeed, "--quiet", *place, spec.origin, *this.arguments], launcher)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _child(command: list[str], step: str) -> None:
    status = subprocess.run(command, check=False).returncode
    if status:
        where = "above" if status == USER_ERROR_STATUS else f"above; the command was: {' '.join(command)}"
        raise UserError(f"{step} failed with exit status {status}: its message stands {where}")


def _inputs(config: Config) -> list[str]:
    """What the raw inputs are now: changes when a file does."""
    marks = []
    for url in (config.data.interactions, config.data.items):
        fs, path = storage.filesystem(url)
        for file in sorted(map(str, fs.glob(path) if "*" in path else fs.find(path))):
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


def _environment(config: Config) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return {
        "python": platform.python_version(),
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "world_size": config.training.world_size,
        "commit": commit.stdout.strip() or None,
        "packages": {d.name: d.version for d in distributions() if d.name in REPORTED},
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
