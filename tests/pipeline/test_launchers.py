"""The launchers as a user runs them: real processes, real exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.tiny_dataset import random_sequences, write_tiny_dataset
from tests.support.tiny_text import write_tiny_text

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def settings(folder: Path) -> Path:
    dataset = write_tiny_dataset(folder / "dataset", random_sequences(60, 80, seed=2), 80)
    write_tiny_text(dataset, 12)
    values = {
        "name": "tiny",
        "out": str(folder / "run"),
        "dataset": dataset,
        "model": {"dim": 16, "max_length": 8},
        "training": {"batch_size": 16, "loss": {"negatives": 40}},
        "pretrain": {"epochs": 2},
    }
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def launch(name: str, *arguments: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    script = str(ROOT / "launchers" / f"{name}.py")
    deepspeed = [str(Path(sys.executable).with_name("deepspeed")), "--quiet", "--num_gpus", str(ranks), script]
    command = [sys.executable, script] if ranks == 1 else deepspeed
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    return subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, timeout=200, check=False
    )


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a refused command."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("pad-dist: error")]
    return line


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config of a run whose first stage was trained on two ranks by the deepspeed launcher."""
    file = settings(tmp_path_factory.mktemp("launch"))
    done = launch("pretrain", "--config", str(file), ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 rank(s)" in done.stdout
    return file


def test_training_leaves_its_newest_and_its_best_checkpoint_metrics_and_result(pretrained: Path) -> None:
    stage = pretrained.parent / "run" / "pretrain"
    result = json.loads((stage / "result.json").read_text())
    *_, newest = sorted(stage.glob("step-*/COMPLETE"))
    meta = json.loads(newest.read_text())
    assert meta["fingerprint"] == result["fingerprint"]
    best = meta["progress"]["best"]
    assert (best["epoch"], best["metrics"]) == (result["epoch"], result["valid"])
    assert {path.parent.name for path in stage.glob("step-*/COMPLETE")} == {
        f"step-{step:09d}" for step in (meta["step"], meta["best"])
    }
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["kind"] == "valid"] == [0, 1, 2]
    assert all(line["loss"] > 0 and line["sequences_per_s"] > 0 for line in lines if line["kind"] == "train")
    assert list((stage / "tensorboard").iterdir())
    assert not [path for path in stage.rglob("*") if path.suffix in (".pt", ".pkl", ".bin")]


def test_checkpoint_of_two_ranks_scores_the_same_on_one(pretrained: Path) -> None:
    done = launch("evaluate", "--config", str(pretrained))
    assert done.returncode == 0, done.stderr
    assert "popularity" in done.stdout
    stage = pretrained.parent / "run" / "pretrain"
    scores = json.loads((stage / "evaluation.json").read_text())["scores"]
    assert scores["id"]["valid"] == json.loads((stage / "result.json").read_text())["valid"]


def test_stage_before_its_predecessor_names_the_command_to_run(tmp_path: Path) -> None:
    file = settings(tmp_path)
    line = refusal(launch("align", "--config", str(file)))
    assert f"run `deepspeed launchers/pretrain.py --config {file}` first" in line
    assert not (tmp_path / "run").exists()


def test_a_stage_that_the_method_does_not_have_is_refused(tmp_path: Path) -> None:
    line = refusal(launch("pretrain_text", "--config", str(settings(tmp_path)), "method=id"))
    assert line.endswith("method=id has no pretrain_text stage, it has pretrain")
    assert not (tmp_path / "run").exists()


def test_evaluation_without_a_trained_stage_names_the_command_to_run(tmp_path: Path) -> None:
    file = settings(tmp_path)
    line = refusal(launch("evaluate", "--config", str(file)))
    assert f"no stage in {tmp_path}/run is trained" in line
    assert f"run `deepspeed launchers/pretrain.py --config {file}` first" in line


def test_predecessor_of_other_settings_is_refused(pretrained: Path) -> None:
    line = refusal(launch("align", "--config", str(pretrained), "model.dim=32"))
    assert "with these settings and data (there: model.dim: 16 -> 32): run" in line


def test_damaged_sequence_shard_is_refused_by_name(tmp_path: Path) -> None:
    file = settings(tmp_path)
    shard = tmp_path / "dataset" / "sequences" / "part-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-10])
    line = refusal(launch("pretrain", "--config", str(file)))
    assert "sequences/part-00001.parquet differs from the manifest" in line


def test_a_stage_larger_than_the_ranks_memory_is_refused(tmp_path: Path) -> None:
    file = settings(tmp_path)
    line = refusal(launch("pretrain", "--config", str(file), "sparse.memory_gib=0.1"))
    assert "pretrain of 80 items needs" in line and "on each of 1 rank(s)" in line
    assert not (tmp_path / "run").exists()


def test_unknown_key_is_refused_before_anything_starts(tmp_path: Path) -> None:
    line = refusal(launch("pretrain", "--config", str(settings(tmp_path)), "training.batch_sise=4"))
    assert "unknown key training.batch_sise; did you mean training.batch_size?" in line
