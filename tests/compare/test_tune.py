"""`pad-dist tune`: trials on validation alone, a search that goes on, and mistakes told before any work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from pad_dist.compare import tune as module
from pad_dist.compare.jobs import Job
from pad_dist.config.load import load_config
from pad_dist.errors import UserError
from tests.support.tiny_dataset import random_sequences
from tests.support.tiny_run import ROOT, RUN
from tests.support.tiny_text import write_tiny_text
from tests.support.tiny_versions import publish_tiny

pytestmark = pytest.mark.slow

SPACE = {
    "pretrain.lr": {"low": 1e-4, "high": 1e-1, "log": True},
    "model.backbone.blocks": {"low": 1, "high": 3, "int": True},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(yaml.safe_dump(RUN))
    Path("space.yaml").write_text(yaml.safe_dump(SPACE))
    return tmp_path


def run_trials(
    monkeypatch: pytest.MonkeyPatch, value: Callable[[Any], float | None]
) -> tuple[Callable[..., Any], list[Job]]:
    """`tune` with trials that end at once with a value of their config, or fail for None; the trials started."""
    started: list[Job] = []

    def trained(jobs: Sequence[tuple[Job, Any]], processes: int, say: Any) -> list[Job]:
        ((job, _),) = jobs
        if job.method == "data":
            return []
        started.append(job)
        config = load_config(job.config_path, [*job.overrides], job.config.out)
        hits = value(config)
        if hits is None:
            return [job]
        result = Path(job.config.out, job.options[1], "result.json")
        result.parent.mkdir(parents=True, exist_ok=True)
        result.write_text(json.dumps({"valid": {"hr@10": hits}}))
        return []

    monkeypatch.setattr(module, "run_all", trained)

    def tune(trials: int, stage: str = "pretrain", out: str = "search", overrides: Sequence[str] = ()) -> Any:
        return module.tune(
            "run.yaml", "space.yaml", trials=trials, stage=stage, out=out, overrides=[*overrides], say=print
        )

    return tune, started


def test_the_best_is_found_and_kept_as_overrides(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tune, started = run_trials(monkeypatch, lambda config: 1 / (1 + abs(config.pretrain.lr - 0.01)))
    best = tune(15)
    assert best == yaml.safe_load(Path("search/best.yaml").read_text())
    assert len(started) == 15 and {job.options[:2] for job in started} == {("--until", "pretrain")}
    assert all(1 <= job.config.model.backbone.blocks <= 3 and 1e-4 <= job.config.pretrain.lr <= 1e-1 for job in started)
    chosen = load_config("run.yaml", best["overrides"])
    assert chosen.pretrain.lr == min((job.config.pretrain.lr for job in started), key=lambda lr: abs(lr - 0.01))
    assert best["valid hr@10"] == pytest.approx(1 / (1 + abs(chosen.pretrain.lr - 0.01)))


def test_a_search_goes_on_with_the_trial_that_was_killed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tune, started = run_trials(monkeypatch, lambda config: config.pretrain.lr)
    tune(3)

    def killed(*_: Any) -> list[Job]:
        raise KeyboardInterrupt

    working = module.run_all
    monkeypatch.setattr(
        module, "run_all", lambda jobs, *rest: working(jobs, *rest) if jobs[0][0].method == "data" else killed()
    )
    with pytest.raises(KeyboardInterrupt):
        tune(5)
    study = optuna.load_study(
        study_name="tune",
        storage=optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("search/study.journal")),
    )
    (cut,) = study.get_trials(states=(optuna.trial.TrialState.RUNNING,))
    monkeypatch.setattr(module, "run_all", working)
    best = tune(5)
    assert len(started) == 5 and best["trials"] == 5
    assert started[3].config.pretrain.lr == cut.params["pretrain.lr"]
    assert len({job.config.out for job in started}) == 5
    tune(5)
    assert len(started) == 5


def test_failed_trials_count_and_are_never_the_best(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tune, started = run_trials(monkeypatch, lambda c: None if c.model.backbone.blocks > 1 else c.pretrain.lr)
    best = tune(12)
    assert len(started) == best["trials"] == 12
    assert "model.backbone.blocks=1" in best["overrides"]
    tune, _ = run_trials(monkeypatch, lambda config: None)
    with pytest.raises(UserError, match=r"none of 2 trials has succeeded, the last one: see other/trials/\w+/run.log"):
        tune(2, out="other")


def test_values_that_the_config_takes_one_at_a_time_but_not_together_are_a_failed_trial(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("space.yaml").write_text(
        yaml.safe_dump({"model.dim": {"choices": [12, 16]}, "model.backbone.heads": {"choices": [2, 8]}})
    )
    tune, started = run_trials(monkeypatch, lambda config: config.model.dim / 20)
    best = tune(12, overrides=["model.dim=16"])
    assert best["trials"] == 12 and 0 < len(started) < 12
    assert {(job.config.model.dim, job.config.model.backbone.heads) for job in started} <= {(12, 2), (16, 2), (16, 8)}
    assert "heads" in capsys.readouterr().out


def test_another_search_in_the_same_place_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tune, started = run_trials(monkeypatch, lambda config: 0.5)
    tune(1)
    for change in ({"stage": "align"}, {"overrides": ["pretrain.epochs=9"]}):
        with pytest.raises(UserError, match="is of another config, space or stage: give another --out"):
            tune(2, **change)
    tune(2, overrides=["training.world_size=2"])
    assert len(started) == 2


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ({}, "names no config key"),
        ({"model.dmi": {"low": 1, "high": 2}}, "did you mean model.dim?"),
        ({"model.backbone.blocks": {"low": 0, "high": 2, "int": True}}, "model.backbone.blocks"),
        ({"pretrain.lr": {"low": 0, "high": 2, "log": True}}, "log needs low above 0"),
        ({"pretrain.lr": {"low": 2, "high": 1}}, "low=2 must be below high=1"),
        ({"model.backbone.blocks": {"low": 1.5, "high": 2, "int": True}}, "int needs whole numbers"),
        ({"pretrain.lr": {"low": 1, "high": 2, "itn": True}}, "did you mean int?"),
        ({"pretrain.lr": 3}, "pretrain.lr must be"),
        ({"data.min_rating": {"choices": [3, 4]}}, "data.min_rating cannot be searched"),
        ({"training.loss.kind": {"choices": ["bce", "softmx"]}}, "training.loss.kind"),
    ],
)
def test_a_mistake_in_the_space_is_one_line_before_any_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, space: Any, told: str
) -> None:
    Path("space.yaml").write_text(yaml.safe_dump(space))
    tune, _ = run_trials(monkeypatch, lambda config: 1.0)
    with pytest.raises(UserError) as error:
        tune(1)
    assert told in str(error.value) and "\n" not in str(error.value)
    assert not Path("search").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("space_*.yaml")), ids=lambda path: path.stem)
def test_the_spaces_of_the_repository_are_of_config_keys(path: Path) -> None:
    for key, section in module.load_space(str(path)).items():
        for value in section.ends():
            load_config(str(ROOT / "configs/prime_pantry.yaml"), [f"{key}={value}"])


def test_real_trials_share_what_they_can_and_never_rank_the_test_targets(folder: Path) -> None:
    version = publish_tiny(f"{folder}/dataset", random_sequences(60, 40, 1), [[40, "a"]])
    dataset = f"{folder}/dataset/versions/{version}"
    write_tiny_text(dataset, 8)
    Path("run.yaml").write_text(yaml.safe_dump({key: value for key, value in RUN.items() if key != "data"}))
    Path("space.yaml").write_text(yaml.safe_dump({"align.gamma": {"choices": [0.1, 0.3]}}))
    command = [sys.executable, "-c", "from pad_dist.cli.main import main; main()", "tune", "--config", "run.yaml"]
    command += ["--space", "space.yaml", "--trials", "2", "--out", "search", "--stage", "align"]
    command += [f"dataset={dataset}", "training.world_size=1", "pretrain.epochs=1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "best of 2 trials: align validation hr@10 " in done.stdout
    assert list(Path("search/trials").glob("*/pretrain/result.json"))
    left = {path.name for path in Path("search").rglob("*") if path.is_file()}
    assert not left & {"evaluation.json", "target_ranks.safetensors", "report.json"}
