"""What happens to the ranks of a stage when one of them gets a signal, dies, hangs or computes a NaN."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from pad_dist.runtime.entry import LOST_RANK_STATUS, PREEMPTED_STATUS, USER_ERROR_STATUS
from tests.stages import faults_worker as worker
from tests.support.launch import Launch
from tests.support.tiny_dataset import random_sequences, write_tiny_dataset

pytestmark = pytest.mark.slow

STEPS = 12  # six an epoch


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_dataset(tmp_path_factory.mktemp("faults") / "dataset", random_sequences(45, 60, seed=1), 60)


class Stage:
    """A stage whose ranks are started at once, with faults."""

    def __init__(
        self,
        dataset: str,
        out: Path,
        faults: worker.Faults,
        *,
        world_size: int = 2,
        dropout: float = 0.2,
        **training: Any,
    ) -> None:
        self.out = out / "pretrain"
        out.mkdir(exist_ok=True)
        settings = {
            "name": "faults",
            "out": str(out),
            "dataset": dataset,
            "model": {"dim": 16, "max_length": 8, "dropout": 0.2},
            "training": {"batch_size": 8, "loss": {"negatives": 30}, "log_every": 1, **training},
            "pretrain": {"epochs": 2, "sparse_lr": 0.02},
            "evaluation": {"batch_size": 12},
        }
        number = len(list(out.glob("*.log")))
        self.launch = Launch(out / f"{number}.log", world_size, worker.train, settings, faults)

    def ends(self, *statuses: int | None) -> list[str]:
        """Wait for these statuses, None for a rank that does not end; returns the lines said."""
        stopped = statuses.index(None) if None in statuses else None
        assert self.launch.statuses(stopped=stopped) == list(statuses), self.launch.log.read_text()
        return self.launch.said()

    def progress(self) -> dict[str, Any]:
        """Where the newest checkpoint stands."""
        newest = max(self.out.glob("step-*/COMPLETE"))
        return dict(json.loads(newest.read_text())["progress"])

    def weights(self) -> dict[str, np.ndarray]:
        """Weights and optimizer state of the last checkpoint."""
        files = sorted((self.out / f"step-{STEPS:09d}").glob("**/*.safetensors"))
        return {f"{file.name} {name}": value for file in files for name, value in load_file(file).items()}

    def lines(self, kind: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (self.out / "metrics.jsonl").read_text().splitlines()]
        return [line for line in lines if line["kind"] == kind]


def assert_same(here: Stage, there: Stage) -> None:
    old, new = there.weights(), here.weights()
    assert old and old.keys() == new.keys()
    for name, value in old.items():
        np.testing.assert_array_equal(new[name], value, err_msg=name)


@pytest.fixture(scope="module")
def whole(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """The stage to which nothing happens."""
    stage = Stage(dataset, tmp_path_factory.mktemp("whole"), {})
    assert stage.ends(0, 0) == []
    return stage


@pytest.mark.parametrize(
    ("faults", "kept"),
    [
        ({8: ("SIGTERM", 1)}, (2, 3, 9)),
        ({5: ("SIGINT", 0)}, (1, 6, 6)),
        ({-1: ("SIGTERM", 1)}, (1, 6, 6)),
    ],
    ids=["in mid-epoch", "in the last step of an epoch", "in a validation"],
)
def test_a_signal_to_one_rank_keeps_every_step_of_all(
    dataset: str, whole: Stage, tmp_path: Path, faults: worker.Faults, kept: tuple[int, int, int]
) -> None:
    stopped = Stage(dataset, tmp_path, faults)
    assert stopped.ends(PREEMPTED_STATUS, PREEMPTED_STATUS) == [
        "pad-dist: stopped by a signal: the same command goes on"
    ]
    assert tuple(stopped.progress()[name] for name in ("epoch", "place", "step")) == kept
    rest = Stage(dataset, tmp_path, {})
    assert rest.ends(0, 0) == []
    assert_same(rest, whole)


def test_a_lost_rank_is_named_by_the_one_that_is_left(dataset: str, tmp_path: Path) -> None:
    cases = [("SIGKILL", 0, -9), ("SIGKILL", 1, -9), ("SIGSTOP", 0, None), ("SIGSTOP", 1, None)]
    cases += [("hang", 1, LOST_RANK_STATUS), ("bug", 1, 1)]
    stages = {
        (what, rank, status): Stage(dataset, tmp_path / f"{what}{rank}", {8: (what, rank)}, step_timeout_s=4)
        for what, rank, status in cases
    }
    for (what, rank, status), stage in stages.items():
        other = 1 if what == "bug" else LOST_RANK_STATUS
        (line,) = stage.ends(*((status, other) if rank == 0 else (other, status)))
        if what == "bug":
            assert line == "pad-dist: error (rank 1): a bug, or a machine that failed:"
            continue
        assert re.search(rf"rank {rank} \(\S+, pid \d+; step \d done, then: .*\): no ", line), line
        assert ("it hangs" in line) == (what == "hang")


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_batch_without_a_finite_loss_changes_nothing(dataset: str, tmp_path: Path, world_size: int) -> None:
    nan = ("nan", world_size - 1)
    ended = Stage(dataset, tmp_path / "ended", {8: nan}, world_size=world_size)
    skipping = Stage(
        dataset, tmp_path / "skip", {0: nan, 8: nan, 9: ("SIGTERM", 0)}, world_size=world_size, non_finite="skip"
    )
    expected = Stage(dataset, tmp_path / "left out", {0: ("nothing", 0), 8: ("nothing", 0)}, world_size=world_size)
    (line,) = ended.ends(*[USER_ERROR_STATUS] * world_size)
    assert "step 9 (epoch 2, step 3 of 6, seed 7; users in rows " in line
    assert f"on rank {world_size - 1}) is not finite" in line and "training.non_finite=skip" in line
    skipping.ends(*[PREEMPTED_STATUS] * world_size)
    assert skipping.progress()["skipped"] == 2
    rest = Stage(dataset, tmp_path / "skip", {}, world_size=world_size, non_finite="skip")
    rest.ends(*[0] * world_size)
    expected.ends(*[0] * world_size)
    assert rest.progress()["skipped"] == expected.progress()["skipped"] == 2
    assert [(line["step"], line["skipped"]) for line in rest.lines("skipped")] == [(1, 1), (9, 2)]
    assert [line["step"] for line in rest.lines("train")] == [2, 3, 4, 5, 6, 7, 8, 10, 11, 12]
    assert_same(rest, expected)
