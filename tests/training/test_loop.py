"""The loop of every stage: what is saved, when it stops, when it looks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pad_dist.config import StageConfig
from pad_dist.data.batches import Batch
from pad_dist.training.loop import Best, Metrics, Progress, Schedule, fit
from pad_dist.training.recorder import Recorder

STEPS = 3
NOTHING = torch.zeros(0)
BATCH = Batch(NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, shared_negatives=True)


class Stage:
    """A stage of STEPS steps per epoch whose validations give the scores `hits`, one after the other."""

    def __init__(
        self,
        folder: Path,
        hits: list[float],
        *,
        start: Progress | None = None,
        every: int = 1,
        log_every: int = 2,
        save_every: int = 0,
        nan: tuple[int, ...] = (),
        selects: bool = True,
        **settings: Any,
    ) -> None:
        self.hits = iter(hits)
        self.nan = nan
        self.preempted = False
        self.calls: list[str] = []
        self.saved: list[Progress] = []
        self.scales: list[float] = []
        schedule = Schedule(StageConfig(**settings), 16, STEPS, every, log_every, save_every, selects)
        start_step = start.step if start else None
        with Recorder("pretrain", str(folder), speaks=True, start_step=start_step) as recorder:
            self.best = fit(self, schedule, recorder, start)
        self.lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    def save(self, progress: Progress) -> Best:
        self.saved.append(progress)
        return progress.best

    def batches(self, epoch: int, start_step: int) -> Iterator[Batch]:
        self.calls.append(f"epoch {epoch}")
        return iter([BATCH] * (STEPS - start_step))

    def step(self, number: int, batch: Batch) -> Tensor:
        self.calls.append("step")
        return torch.tensor(torch.nan if number in self.nan else 0.5)

    def set_lr_scale(self, scale: float) -> None:
        self.scales.append(scale)

    def end_epoch(self, epoch: int) -> None:
        self.calls.append(f"end {epoch}")

    def counters(self) -> dict[str, int]:
        return {"id.admitted": 5}

    def validate(self) -> Metrics:
        self.calls.append("validate")
        hit = next(self.hits)
        return {"hr@10": hit, "ndcg@10": hit / 2, "cold": {"hr@10": hit / 4}}

    def places(self, kind: str) -> list[tuple[int, int]]:
        return [(line["epoch"], line["step"]) for line in self.lines if line["kind"] == kind]


def test_an_epoch_is_all_its_steps_and_one_validation(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [0.1, 0.2, 0.3], epochs=2)
    epochs = [[f"epoch {n}", *["step"] * 3, f"end {n}", "validate"] for n in (1, 2)]
    assert stage.calls == ["validate", *epochs[0], *epochs[1]]


def test_every_validation_is_saved_with_the_best_so_far(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [0.1, 0.3, 0.2, 0.4, 0.4, 0.1], epochs=5)
    assert [(now.epoch, now.place, now.step) for now in stage.saved] == [(n + 1, 0, 3 * n) for n in range(6)]
    # An equal score is no gain: the earlier weights stay.
    assert [(now.best.epoch, now.best.step) for now in stage.saved] == [(n, 3 * n) for n in (0, 1, 1, 3, 3, 3)]
    assert stage.best == stage.saved[-1].best
    assert stage.best.metrics == {"hr@10": 0.4, "ndcg@10": 0.2, "cold": {"hr@10": 0.1}}


def test_untrained_weights_are_kept_where_training_only_harms(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [0.3, 0.2, 0.1], epochs=2)
    assert {now.best.epoch for now in stage.saved} == {0} and stage.best.epoch == 0


def test_no_epochs_leave_the_first_weights(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [0.3], epochs=0)
    assert [now.best.epoch for now in stage.saved] == [0] and "step" not in stage.calls


def test_where_validation_does_not_select_the_last_weights_are_kept_after_all_epochs(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [0.9, 0.3, 0.2, 0.2, 0.1, 0.1], epochs=5, patience=1, every=2, selects=False)
    assert (stage.best.epoch, stage.best.step, stage.calls.count("step")) == (5, 5 * STEPS, 5 * STEPS)
    assert [now.best.epoch for now in stage.saved] == [0, 2, 4, 5]


def test_training_stops_after_patience_without_gain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = Stage(tmp_path, [0.1, 0.3, 0.2, 0.2, 0.2, 0.9], epochs=50, patience=3)
    assert (stage.best.epoch, stage.calls.count("step")) == (1, 4 * STEPS)
    assert "no better validation hr@10 for 3 epochs: stop, keep epoch 1" in capsys.readouterr().out


def test_validations_may_be_rare_and_the_last_epoch_has_one(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [0.1, 0.2, 0.3, 0.4], every=2, epochs=5)
    assert stage.places("valid") == [(0, 0), (2, 6), (4, 12), (5, 15)]


def test_patience_counts_epochs_between_rare_validations_too(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [0.1, 0.2, 0.1, 0.1, 0.9], every=2, epochs=50, patience=4)
    assert stage.calls.count("validate") == 4 and stage.best.epoch == 2


@pytest.mark.parametrize(("warmup", "expected"), [(0, [1.0]), (3, [0.25, 0.5, 0.75, 1.0]), (99, [0.01, 0.02, 0.03])])
def test_learning_rate_warms_up_once(tmp_path: Path, warmup: int, expected: list[float]) -> None:
    stage = Stage(tmp_path, [0.1] * 3, epochs=1 if warmup == 99 else 2, warmup_steps=warmup)
    assert stage.scales == pytest.approx(expected)


def test_losses_are_told_every_few_steps_and_at_the_end_of_the_epoch(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [0.1] * 3, epochs=2, log_every=2)
    assert stage.places("train") == [(1, 2), (1, 3), (2, 5), (2, 6)]
    assert {(line["loss"], line["id.admitted"]) for line in stage.lines if line["kind"] == "train"} == {(0.5, 5)}


def test_a_skipped_step_is_counted_and_leaves_the_warm_up_where_it_was(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [0.1] * 3, epochs=2, warmup_steps=3, nan=(1, 5), save_every=2)
    assert stage.scales == pytest.approx([0.25, 0.5, 0.5, 0.75, 1.0])
    assert [now.skipped for now in stage.saved] == [0, 1, 1, 1, 2]
    assert stage.places("skipped") == [(1, 2), (2, 6)] and stage.places("train") == [(1, 3), (2, 5)]


@pytest.mark.parametrize("stop", range(9))
def test_a_stage_goes_on_from_anything_it_has_saved(tmp_path: Path, stop: int) -> None:
    hits, settings = [0.1, 0.3, 0.2, 0.2, 0.2, 0.9], {"epochs": 50, "patience": 3, "save_every": 2, "warmup_steps": 5}
    whole = Stage(tmp_path / "whole", hits, **settings)
    start = whole.saved[stop]
    validated = start.epoch if start.epoch <= 50 else 5  # also the one before the first step
    rest = Stage(tmp_path / "rest", hits[validated:], start=start, **settings)
    assert rest.saved == whole.saved[stop + 1 :]
    assert rest.best == whole.best
    assert rest.calls.count("step") == whole.calls.count("step") - start.step
    missing = whole.scales[start.step :]
    assert rest.scales[: len(missing)] == pytest.approx(missing)


def test_an_epoch_ends_once_also_where_training_was_ended_by_its_last_step(tmp_path: Path) -> None:
    start = Progress(1, STEPS, STEPS, Best(0, 0, {"hr@10": 0.1}))
    stage = Stage(tmp_path, [0.2, 0.3], start=start, epochs=2)
    assert stage.calls == ["epoch 1", "validate", "epoch 2", *["step"] * 3, "end 2", "validate"]


def test_a_resumed_stage_keeps_the_lines_up_to_its_checkpoint(tmp_path: Path) -> None:
    hits, settings = [0.1, 0.2, 0.3], {"epochs": 2, "log_every": 1}
    whole = Stage(tmp_path, hits, **settings)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')
    again = Stage(tmp_path, hits[2:], start=whole.saved[1], **settings)
    for kind in ("train", "valid"):
        assert again.places(kind) == whole.places(kind)
