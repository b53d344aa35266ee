"""Stages with hashed tables: killed, resumed on other ranks, inherited by the next stage and by a warm start."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from pad_dist.config import StageName
from pad_dist.dataset.reader import key_id
from tests.stages import hashed_worker, resume_worker
from tests.support.ranks import run_ranks
from tests.support.stages import STAGES
from tests.support.tiny_dataset import random_sequences, write_tiny_dataset
from tests.support.tiny_text import write_tiny_text

pytestmark = pytest.mark.slow

ITEMS, STEPS, SAVED = 400, 12, 9  # six steps an epoch
HASHED = {"rows": 1024, "buckets": 1024, "admit_after": 2, "candidates": 2}
"""One row in a bucket: of 400 items about 70 share theirs with another."""
Losses = dict[StageName, dict[int, float]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset."""
    folder = tmp_path_factory.mktemp("hashed")
    sequences = random_sequences(45, ITEMS, seed=1, longest=30)
    write_tiny_text(write_tiny_dataset(folder / "dataset", sequences, ITEMS), 12)
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> Losses:
    """Losses of all stages, trained on two ranks into `whole`, where every checkpoint stays."""
    runs: list[hashed_worker.Run] = [(settings(folder, "whole"), stage) for stage in STAGES]
    losses, *_ = run_ranks(resume_worker.losses, 2, runs, None, timeout=120)
    return dict(zip(STAGES, losses, strict=True))


def settings(folder: Path, out: str, **changes: Any) -> dict[str, Any]:
    stage = {"epochs": 2, "sparse_lr": 0.02}
    return {
        "name": "hashed",
        "out": str(folder / out),
        "dataset": str(folder / "dataset"),
        "model": {"dim": 16, "max_length": 20, "dropout": 0.0},
        "sparse": {"hashed": HASHED},
        "training": {"batch_size": 8, "loss": {"negatives": 30}, "log_every": 3},
        "checkpoint": {"every": 3, "keep": 9},
        "pretrain": stage,
        "align": stage | {"ema_decay": 0.5},
        "disentangle": stage | {"freeze": ["id"]},
        **changes,
    }


def arrays(out: Path, stage: str) -> dict[str, np.ndarray]:
    files = sorted((out / stage).glob(f"step-{STEPS:09d}/*.safetensors"))
    return {f"{file.name} {name}": value for file in files for name, value in load_file(file).items()}


@pytest.mark.parametrize("world_size", [2, 3, 1])
def test_a_stage_goes_on_with_the_same_rows_of_the_same_items(folder: Path, whole: Losses, world_size: int) -> None:
    cuts = []
    for stage in STAGES:
        out = folder / f"cut {stage} on {world_size}"
        shutil.copytree(folder / "whole", out)
        shutil.rmtree(out / stage / f"step-{STEPS:09d}")
        cuts.append((settings(folder, out.name), stage, f"{out}/{stage}/step-{SAVED:09d}"))
    resumed, *_ = run_ranks(hashed_worker.loaded_and_resumed, world_size, cuts, timeout=120)
    for (_, stage, path), (loaded, losses) in zip(cuts, resumed, strict=True):
        saved = arrays_of_items(Path(path), loaded)
        for name, rows in loaded.items():
            np.testing.assert_array_equal(rows[1:], saved[name], err_msg=f"{stage} {name}")
        assert sorted(losses) == list(range(SAVED, STEPS))
        assert losses == pytest.approx({step: whole[stage][step] for step in losses}, rel=1e-5), stage
        if world_size == 2:
            assert losses == {step: whole[stage][step] for step in losses}
            old, new = arrays(folder / "whole", stage), arrays(folder / f"cut {stage} on 2", stage)
            assert old and old.keys() == new.keys()
            for name, value in old.items():
                np.testing.assert_array_equal(new[name], value, err_msg=f"{stage} {name}")


def arrays_of_items(checkpoint: Path, tables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """[ITEMS, D] vectors of items 1 onwards as a checkpoint's files have them; zeros without a row."""
    by_table = {}
    shards = [item for file in sorted(checkpoint.glob("tables-*")) for item in load_file(file).items()]
    for table in tables:
        whole = {
            name: np.concatenate([v for key, v in sorted(shards, key=first_row) if key.split("@")[0] == name])
            for name in (table, f"{table}.ids")
        }
        row_of = {key: row for row, key in enumerate(whole[f"{table}.ids"].flatten().tolist(), 1) if key}
        rows = [row_of.get(key_id(f"key-{item}")) for item in range(1, ITEMS + 1)]
        assert 0 < rows.count(None) < ITEMS and len(whole[table]) == HASHED["rows"] + 1
        by_table[table] = np.stack([whole[table][row] if row else np.zeros(16) for row in rows])
    return by_table


def first_row(shard: tuple[str, np.ndarray]) -> int:
    return int(shard[0].split("@")[1].split(",")[0])


def test_ids_come_and_go_and_are_counted(folder: Path, whole: Losses) -> None:
    for stage in STAGES:
        lines = [json.loads(line) for line in (folder / "whole" / stage / "metrics.jsonl").read_text().splitlines()]
        told = [line for line in lines if line["kind"] == "train"]
        assert len(told) == 4
        table = "id" if stage == "pretrain" else "aligned"
        for counter in ("admitted", "evicted", "collisions", "unadmitted"):
            counts = [line[f"{table}.{counter}"] for line in told]
            assert counts == sorted(counts) and counts[-1], (stage, counter)
    # What is frozen keeps the map that it came with.
    assert {line["id.admitted"] for line in told} == {told[0]["id.admitted"]}


@pytest.mark.parametrize("changes", [{}, {"out": "later", "warm_start": "whole"}], ids=["align", "warm start"])
def test_a_table_comes_with_its_map(folder: Path, whole: Losses, changes: dict[str, str]) -> None:
    follower: StageName = "pretrain" if changes else "align"
    values = settings(folder, "whole") | {key: str(folder / value) for key, value in changes.items()}
    runs = (settings(folder, "whole"), "pretrain"), (values, follower)
    for there, here in run_ranks(hashed_worker.started, 1, *runs):
        (rows,) = here.values()
        assert there["id"].any()
        np.testing.assert_array_equal(rows[1:], there["id"][1:])
