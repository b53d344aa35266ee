"""A stage that is killed in mid-epoch goes on at any world size as if nothing had happened."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from pad_dist import storage
from pad_dist.config import StageName
from tests.stages import resume_worker as worker
from tests.support.ranks import run_ranks
from tests.support.stages import STAGES
from tests.support.tiny_dataset import random_sequences, write_tiny_dataset
from tests.support.tiny_text import write_tiny_text

pytestmark = pytest.mark.slow

STEPS, STOP, SAVED = 12, 10, 9  # six steps an epoch
Runs = list[tuple[dict[str, Any], StageName]]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("resume")
    dataset = write_tiny_dataset(folder / "dataset", random_sequences(45, 60, seed=1), 60)
    write_tiny_text(dataset, 12)
    return dataset


def settings(
    dataset: str,
    out: Path,
    *,
    dropout: float = 0.0,
    backbone: str = "sasrec",
    asynchronous: bool = False,
    method: str = "pad",
    ema_decay: float = 0.0,
    **training: Any,
) -> dict[str, Any]:
    stage = {"epochs": 2, "sparse_lr": 0.02, "ema_decay": ema_decay}
    return {
        "name": "resume",
        "method": method,
        "out": str(out),
        "dataset": dataset,
        "model": {"dim": 16, "max_length": 8, "dropout": dropout, "backbone": {"kind": backbone}},
        "training": {"batch_size": 8, "loss": {"negatives": 30}, **training},
        # Training that waits for its saves goes on from the last one before it was killed.
        "checkpoint": {"every": 3, "asynchronous": asynchronous},
        "pretrain": stage,
        "pretrain_text": stage,
        "align": stage,
        "disentangle": stage,
    }


def train(runs: Runs, world_size: int, stop: int | None = None) -> list[dict[int, float]]:
    first, *others = run_ranks(worker.losses, world_size, runs, stop, timeout=240)
    assert all(other == first for other in others)
    return first


def weights(out: Path, stage: str, step: int = STEPS) -> dict[str, np.ndarray]:
    files = sorted((out / stage).glob(f"step-{step:09d}/**/*.safetensors"))
    return {f"{file.name} {name}": value for file in files for name, value in load_file(file).items()}


VARIANTS = [(zero, precision, "sasrec", 0.7 * (zero == 2)) for precision in ("fp32", "bf16") for zero in range(4)]
VARIANTS += [(0, "bf16", "caser", 0.0), (1, "fp32", "ligr", 0.7), (3, "fp32", "gru4rec", 0.7)]


def test_the_rest_of_a_stage_is_that_of_an_uninterrupted_run(dataset: str, tmp_path: Path) -> None:
    whole, cut = (
        [
            (
                settings(
                    dataset,
                    tmp_path / name / f"{z}{p}{b}{decay}",
                    dropout=0.2,
                    backbone=b,
                    asynchronous=a,
                    zero_stage=z,
                    precision=p,
                    ema_decay=decay,
                ),
                "pretrain",
            )
            for z, p, b, decay in VARIANTS
        ]
        for name, a in (("whole", True), ("cut", False))
    )
    expected = train(whole, 2)
    train(cut, 2, STOP)
    resumed = train(cut, 2)
    for variant, there, here in zip(VARIANTS, expected, resumed, strict=True):
        assert sorted(there) == list(range(STEPS))
        assert here == {step: there[step] for step in range(SAVED, STEPS)}, variant
        old, new = (weights(tmp_path / name / "".join(map(str, variant)), "pretrain") for name in ("whole", "cut"))
        assert old and old.keys() == new.keys()
        for name, value in old.items():
            np.testing.assert_array_equal(new[name], value, err_msg=f"{variant} {name}")


@pytest.mark.parametrize("world_size", [1, 2])
def test_what_is_kept_is_the_moving_average_of_what_is_trained(dataset: str, tmp_path: Path, world_size: int) -> None:
    plain = settings(dataset, tmp_path / "plain")
    plain["checkpoint"]["keep"] = 9
    averaged = settings(dataset, tmp_path / "averaged", ema_decay=0.75)
    averaged["pretrain"] = averaged["pretrain"] | {"epochs": 3}
    plain["pretrain"] = averaged["pretrain"] | {"ema_decay": 0.0}
    train([(plain, "pretrain"), (averaged, "pretrain")], world_size)
    first, second, third = (weights(tmp_path / "plain", "pretrain", step) for step in (6, 12, 18))
    kept = weights(tmp_path / "averaged", "pretrain", 18)
    for name, last in third.items():
        if "optimizer" in name or "momentum" in name:
            np.testing.assert_array_equal(kept[name], last)
            continue
        wanted = 0.75 * (0.75 * first[name] + 0.25 * second[name]) + 0.25 * last
        np.testing.assert_allclose(kept[name], wanted, rtol=1e-5, atol=1e-7, err_msg=name)
        if name.startswith("tables"):
            np.testing.assert_array_equal(kept[name.replace("id@", "id.trained@")], last)
    result = storage.read_json(f"{tmp_path}/averaged/pretrain/result.json")
    assert result["epoch"] > 1
    for metrics in run_ranks(worker.score, world_size, averaged, "pretrain"):
        assert metrics == result["valid"]


def test_every_stage_goes_on_at_another_world_size_and_zero_stage(dataset: str, tmp_path: Path) -> None:
    expected = dict(
        zip(STAGES, train([(settings(dataset, tmp_path / "whole"), stage) for stage in STAGES], 2), strict=True)
    )
    cut: Runs = [(settings(dataset, tmp_path / f"cut {stage}", zero_stage=1), stage) for stage in STAGES]
    for values, stage in cut:
        shutil.copytree(tmp_path / "whole", values["out"])
        shutil.rmtree(Path(values["out"]) / stage)
    train(cut, 2, STOP)
    for world_size, zero in ((1, 0), (3, 2), (4, 3)):
        runs: Runs = [
            (settings(dataset, tmp_path / f"cut {stage} on {world_size}", zero_stage=zero), stage) for stage in STAGES
        ]
        for (before, _), (after, _) in zip(cut, runs, strict=True):
            shutil.copytree(before["out"], after["out"])
        for stage, resumed in zip(STAGES, train(runs, world_size), strict=True):
            assert sorted(resumed) == list(range(SAVED, STEPS))
            for step, loss in resumed.items():
                assert loss == pytest.approx(expected[stage][step], rel=1e-5), (stage, world_size, step)


METHODS: list[tuple[str, StageName, int]] = [
    ("text", "pretrain_text", 0),
    ("ctrl", "align", 1),
    ("rlmrec_con", "pretrain", 0),
    ("rlmrec_gen", "pretrain", 3),
    ("llm_init", "pretrain", 2),
]


def test_other_methods_go_on_as_if_nothing_had_happened(dataset: str, tmp_path: Path) -> None:
    def runs(name: str) -> Runs:
        return [
            (settings(dataset, tmp_path / name / method, dropout=0.2, method=method, zero_stage=zero), stage)
            for method, stage, zero in METHODS
        ]

    for values, _ in (every := [*runs("whole"), *runs("cut")]):
        values["model"]["dim"] = 12
    whole, cut = every[: len(METHODS)], every[len(METHODS) :]
    expected = train(whole, 2)
    train(cut, 2, STOP)
    for values, stage in cut:  # as after a long day
        saved = f"{values['out']}/{stage}/step-{SAVED:09d}/COMPLETE"
        storage.write_json(saved, storage.read_json(saved) | {"seconds": 80_000.0})
    for (method, stage, _), there, here in zip(METHODS, expected, train(cut, 2), strict=True):
        assert here == {step: there[step] for step in range(SAVED, STEPS)}, method
        old, new = (weights(tmp_path / name / method, stage) for name in ("whole", "cut"))
        assert old and old.keys() == new.keys()
        for name, value in old.items():
            np.testing.assert_array_equal(new[name], value, err_msg=f"{method} {name}")
        results = [storage.read_json(f"{tmp_path}/{name}/{method}/{stage}/result.json") for name in ("whole", "cut")]
        assert 0 < results[0]["seconds"] < 80_000 < results[1]["seconds"], method
    assert not list((tmp_path / "whole" / "text").rglob("tables-*"))
    result = storage.read_json(f"{tmp_path}/whole/ctrl/align/result.json")
    assert result["epoch"] == 2  # the last, whatever an untrained encoder scores


def test_more_ranks_than_users_train_the_same_with_checkpoints_in_another_place(tmp_path: Path) -> None:
    few = write_tiny_dataset(tmp_path / "dataset", random_sequences(3, 60, seed=1), 60)
    write_tiny_text(few, 12)
    losses = []
    for count in (1, 4):
        elsewhere = {"checkpoint": {"root": f"{tmp_path}/kept {count}"}}
        losses.append(train([(settings(few, tmp_path / f"{count}") | elsewhere, stage) for stage in STAGES], count))
        assert not list((tmp_path / f"{count}").glob("*/step-*"))
        assert {path.parent.name for path in (tmp_path / f"kept {count}").glob("*/step-*")} == set(STAGES)
    for one, four in zip(*losses, strict=True):
        assert one.keys() == four.keys() == {0, 1}
        assert [four[step] for step in one] == pytest.approx(list(one.values()), rel=1e-5)
