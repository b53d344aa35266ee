"""What a stage tells while it trains."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pad_dist.training.recorder import Recorder

METRICS = {"hr@10": 0.0625, "ndcg@10": 0.03125, "cold": {"hr@10": 0.015625}}


def tell(recorder: Recorder) -> None:
    recorder.say("hello")
    recorder.start_clock()
    for place in range(1, 11):
        recorder.count(128)
        if place == 10:
            recorder.training(epoch=2, step=50, place=10, steps=40, loss=1.5, counters={"id.admitted": 7})
    recorder.validation(epoch=2, step=80, metrics=METRICS, best=True)
    recorder.validation(epoch=3, step=120, metrics=METRICS, best=False)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is four seconds after the one before."""
    ticks = iter(range(0, 1000, 4))
    clock = SimpleNamespace(monotonic=lambda: next(ticks), time=lambda: 1e9)
    monkeypatch.setattr("pad_dist.training.recorder.time", clock)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("clock")
def test_console_shows_progress_speed_and_time_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Recorder("align", str(tmp_path), speaks=True) as recorder:
        tell(recorder)
    assert capsys.readouterr().out.splitlines() == [
        "[align] hello",
        # 10 steps of 128 sequences in 4 s, 30 steps to go.
        "[align] epoch 2 step 10/40 loss 1.5000 320 sequences/s eta 12 s",
        "[align] epoch 2 validation  hr@10 0.0625  ndcg@10 0.0312  cold_hr@10 0.0156  best so far",
        "[align] epoch 3 validation  hr@10 0.0625  ndcg@10 0.0312  cold_hr@10 0.0156",
    ]


@pytest.mark.usefixtures("clock")
def test_json_lines_hold_what_the_console_shows(tmp_path: Path) -> None:
    with Recorder("align", str(tmp_path / "new" / "folder"), speaks=True) as recorder:
        tell(recorder)
        # Readable while training goes on.
        train, valid, _ = lines(tmp_path / "new" / "folder")
    values = {"loss": 1.5, "sequences_per_s": 320.0, "id.admitted": 7}
    assert train == {"kind": "train", "step": 50, "epoch": 2, "time": 1e9, **values}
    scores = {"hr@10": 0.0625, "ndcg@10": 0.03125, "cold_hr@10": 0.015625}
    assert valid == {"kind": "valid", "step": 80, "epoch": 2, "time": 1e9, **scores}


def test_tensorboard_holds_the_same_numbers(tmp_path: Path) -> None:
    with Recorder("align", str(tmp_path), speaks=True) as recorder:
        tell(recorder)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    told = {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}
    assert told.pop("train/sequences_per_s")[0][0] == 50
    assert told == {
        "train/loss": [(50, 1.5)],
        "train/id.admitted": [(50, 7)],
        "valid/hr@10": [(80, 0.0625), (120, 0.0625)],
        "valid/ndcg@10": [(80, 0.03125), (120, 0.03125)],
        "valid/cold_hr@10": [(80, 0.015625), (120, 0.015625)],
    }


def test_other_ranks_say_and_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Recorder("align", str(tmp_path / "run"), speaks=False) as recorder:
        tell(recorder)
    assert capsys.readouterr().out == "" and not (tmp_path / "run").exists()
