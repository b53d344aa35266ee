"""`pad-dist run` as a user runs it: real Spark, real ranks, real exit codes."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from pad_dist.dataset import versions
from pad_dist.evaluation.target_ranks import TargetRankFile
from tests.support.raw_files import write_raw
from tests.support.stages import STAGES
from tests.support.tiny_run import ROOT, RUN, SPARK

# The first test waits for the whole run.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

OUT = "2024"  # a name that YAML takes for a number
STEPS = ["synthetic", "build_sequences", "embed_items", *STAGES, "evaluate"]
SETTINGS = RUN | {"training": RUN["training"] | {"world_size": 2}}


@dataclass(frozen=True)
class Ended:
    """A `pad-dist run` that has ended, its report if it left one, and how long it took."""

    done: subprocess.CompletedProcess[str]
    report: dict[str, Any]
    seconds: float

    def steps(self, what: str) -> list[str]:
        """Steps that were said to "start" or to be "already done", in order."""
        said = [line.partition(": ") for line in self.done.stdout.splitlines()]
        return [name for name, _, text in said if name in STEPS and text == what]


def pad_dist(folder: Path, *overrides: str, settings: dict[str, Any] = SETTINGS, out: str = OUT) -> Ended:
    """Run into <folder>/<out>, from a directory that is not the checkout."""
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-c", "from pad_dist.cli.main import main; main()", "run"]
    command += ["--config", "tiny.yaml", "--out", out, *overrides]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    started = time.monotonic()
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    file = folder / out / "report.json"
    return Ended(done, json.loads(file.read_text()) if file.exists() else {}, time.monotonic() - started)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipeline")


@pytest.fixture(scope="module")
def first(folder: Path) -> Ended:
    """The run from nothing to the report."""
    ended = pad_dist(folder)
    assert ended.done.returncode == 0, ended.done.stdout[-4000:] + ended.done.stderr[-4000:]
    return ended


def test_raw_events_become_a_report_in_one_command(first: Ended, folder: Path) -> None:
    assert first.steps("start") == STEPS
    report = first.report
    version = versions.current(f"{folder / OUT}/dataset")
    assert report["dataset"]["version"] == version
    manifest = json.loads((folder / OUT / f"dataset/versions/{version}/manifest.json").read_text())
    assert report["dataset"].items() >= manifest["counts"].items()
    assert report["dataset"]["items"] == 200 and report["dataset"]["raw_events"] == 1500
    assert list(report["timings_s"]) == sorted(STEPS) and min(report["timings_s"].values()) > 0
    assert report["environment"]["world_size"] == 2
    assert report["environment"]["packages"].keys() >= {"torch", "torchrec", "deepspeed", "pyspark", "transformers"}
    assert set(report["stages"]) == set(STAGES)
    assert set(report["experts"]) == {"id", "aligned", "text"}


def test_every_score_of_the_report_covers_every_user(first: Ended) -> None:
    report = first.report
    scored = [*report["stages"].values(), *report["experts"].values(), report["popularity"]]
    for splits in scored:
        assert set(splits) == {"valid", "test"}
        for metrics in splits.values():
            slices = [metrics, metrics["cold"], *metrics["by_bin"]]
            assert [entry["bin"] for entry in metrics["by_bin"]] == list(range(1, 11))
            assert all(0 <= part["ndcg@10"] <= part["hr@10"] <= 1 for part in slices)
            assert metrics["users"] == report["dataset"]["users"]
            assert sum(entry["users"] for entry in metrics["by_bin"]) == metrics["users"]
            hits = sum(entry["users"] * entry["hr@10"] for entry in metrics["by_bin"])
            assert hits == pytest.approx(metrics["users"] * metrics["hr@10"])


def test_the_target_ranks_of_every_user_give_the_report_on_two_ranks(first: Ended, folder: Path) -> None:
    for stage, scorer in (("pretrain", "id"), ("disentangle", "mixture")):
        users = TargetRankFile.read(f"{folder / OUT}/{stage}/target_ranks.safetensors").splits
        for split, metrics in first.report["stages"][stage].items():
            assert users[split].hits(scorer).mean() == metrics["hr@10"]
            assert users[split].gains(scorer).mean() == pytest.approx(metrics["ndcg@10"], rel=1e-12)


def test_frozen_experts_come_out_of_the_last_stage_as_they_went_in(first: Ended) -> None:
    assert first.report["experts"]["id"] == first.report["stages"]["pretrain"]
    assert first.report["experts"]["aligned"] == first.report["stages"]["align"]
    assert first.report["experts"]["text"] != first.report["stages"]["align"]


def test_the_printed_table_is_the_report(first: Ended) -> None:
    for name, splits in [*first.report["stages"].items(), ("most popular", first.report["popularity"])]:
        test = splits["test"]
        assert any(
            name in line and f"{test['hr@10']:.4f} / {test['ndcg@10']:.4f}" in line
            for line in first.done.stdout.splitlines()
        ), name


def times(folder: Path) -> dict[str, int]:
    """When each file below the run's directories was last written."""
    return {str(path): path.stat().st_mtime_ns for path in (folder / OUT).glob("*/**/*") if path.is_file()}


def test_a_second_run_does_nothing_and_reports_the_same(first: Ended, folder: Path) -> None:
    kept = times(folder)
    again = pad_dist(folder)
    assert again.done.returncode == 0, again.done.stderr[-4000:]
    assert again.steps("already done") == STEPS
    assert again.report == first.report
    assert times(folder) == kept and any("COMPLETE" in path for path in kept)
    assert again.seconds < first.seconds / 3


def test_a_changed_setting_redoes_what_depends_on_it(first: Ended, folder: Path) -> None:
    changed = pad_dist(folder, "disentangle.epochs=2")
    assert changed.done.returncode == 0, changed.done.stderr[-4000:]
    assert changed.steps("start") == ["disentangle", "evaluate"]
    assert changed.steps("already done") == [step for step in STEPS if step not in ("disentangle", "evaluate")]
    assert changed.report["stages"]["align"] == first.report["stages"]["align"]
    assert changed.report["timings_s"]["disentangle"] != first.report["timings_s"]["disentangle"]
    result = json.loads((folder / OUT / "disentangle/result.json").read_text())
    assert changed.report["stages"]["disentangle"]["valid"] == result["valid"]


def test_damage_that_one_rank_finds_is_one_line(first: Ended, folder: Path) -> None:
    # The last users are evaluated on the last rank; the other one is waiting for it.
    shard = max((Path(versions.resolve(f"{folder / OUT}/dataset")) / "sequences").iterdir())
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    ended = pad_dist(folder, "pretrain.lr=0.002")
    shard.write_bytes(whole)
    assert ended.steps("start") == ["pretrain"]
    assert ended.done.returncode == 2, ended.done.stdout + ended.done.stderr
    assert "Traceback" not in ended.done.stderr
    (line,) = [line for line in ended.done.stderr.splitlines() if "error" in line]
    assert line.startswith("pad-dist: error (rank 1): ") and f"{shard.name} differs from the manifest" in line


def next_day(raw: Path, users: int) -> int:
    """Each of `users` takes a new item, listed from today on, that reads like the last one; returns how many."""
    with gzip.open(raw / "interactions-00000.csv.gz", "rt") as file:
        events = sorted(csv.DictReader(file), key=lambda event: int(event["timestamp"]))
    with gzip.open(raw / "items.csv.gz", "rt") as file:
        title = {row["item"]: row["title"] for row in csv.DictReader(file)}
    today = int(events[-1]["timestamp"]) + 1
    last = dict(sorted({event["user"]: event["item"] for event in events}.items())[:users])
    with gzip.open(raw / "interactions-00001.csv.gz", "wt") as file:
        # Keys that come before those of known items.
        file.write("user,item,rating,timestamp\n" + "".join(f"{u},a-{item},5,{today}\n" for u, item in last.items()))
    new = sorted(set(last.values()))
    with gzip.open(raw / "items.csv.gz", "at") as file:
        file.write("".join(f'a-{item},"{title[item]}, Gift Box"\n' for item in new))
    return len(new)


def test_the_next_day_grows_the_dataset_and_warm_starts_every_stage(first: Ended, folder: Path) -> None:
    dataset, users = f"{OUT}/dataset", 60
    before = versions.current(f"{folder}/{dataset}")
    new = next_day(folder / OUT / "raw", users)
    inputs = [f"data.interactions={OUT}/raw/interactions-*.csv.gz", f"data.items={OUT}/raw/items.csv.gz"]
    settings = [f"dataset={dataset}", f"warm_start={folder / OUT}", "pretrain.epochs=1", "training.world_size=1"]
    day = pad_dist(folder, *inputs, *settings, "evaluation.cold_max_frequency=0", out="next")
    assert day.done.returncode == 0, day.done.stdout[-4000:] + day.done.stderr[-4000:]
    assert day.steps("start") == [step for step in STEPS if step != "synthetic"]
    assert f"grows from version {before}: 1 new of 2 event files" in day.done.stdout
    assert f" {new} texts embedded now" in day.done.stdout

    told, report = day.report["dataset"], day.report
    assert told["version"] == versions.current(f"{folder}/{dataset}") != before
    assert (told["items"], told["raw_events"]) == (200 + new, 1500 + users)
    for stage in STAGES:
        assert (
            json.loads((folder / "next" / stage / "result.json").read_text())["dataset"]["version"] == told["version"]
        )
    # What was learned is there before the first step.
    assert before_training(day) > 2 * before_training(first)
    # A target is cold here if nobody had it in training; all new ones are.
    cold = report["experts"]["text"]["test"]["cold"]
    assert cold["users"] >= users
    assert cold["hr@10"] * cold["users"] > cold["users"] - users, "no new item is ranked among the best"


def before_training(ended: Ended) -> float:
    """Validation hr@10 that the first stage starts from."""
    match = re.search(r"\[pretrain\] epoch 0 validation +hr@10 ([\d.]+)", ended.done.stdout)
    assert match is not None
    return float(match[1])


RAW = {"name": "raw", "data": {"interactions": "events.csv", "items": "items.csv", "spark_conf": SPARK}}


def test_a_users_mistake_is_one_line_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    write_raw(tmp_path, unreadable=24)
    ended = pad_dist(tmp_path, settings=RAW)
    assert ended.done.returncode == 2, ended.done.stdout + ended.done.stderr
    assert "Traceback" not in ended.done.stderr
    (line,) = [line for line in ended.done.stderr.splitlines() if "error:" in line]
    assert "24 of 240 rows (10.0%) of events.csv are unreadable (time is blank: 24)" in line
    left = [str(path.relative_to(tmp_path / OUT)) for path in (tmp_path / OUT).rglob("*") if path.is_file()]
    assert left == ["dataset/rejected/interactions.jsonl"]


def test_an_earlier_run_that_is_not_there_is_told_before_any_work(tmp_path: Path) -> None:
    ended = pad_dist(tmp_path, "warm_start=nowhere")
    assert ended.done.returncode == 2
    assert "warm_start=nowhere has no pretrain stage" in ended.done.stderr
    assert ended.steps("start") == []


def test_a_place_that_cannot_be_written_is_told_before_any_work(tmp_path: Path) -> None:
    (tmp_path / OUT).write_text("a file")
    ended = pad_dist(tmp_path)
    assert ended.done.returncode == 2
    assert f"cannot write to {OUT}, {tmp_path / OUT} is no directory or read-only" in ended.done.stderr
    assert ended.steps("start") == []
