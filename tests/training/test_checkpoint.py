"""Checkpoints of one process: whole or ignored, one at a time, nothing to unpickle."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open

from pad_dist.config import SparseConfig
from pad_dist.errors import UserError
from pad_dist.sparse.tables import Tables, TableSpec, build_tables
from pad_dist.training.checkpoint import (
    best_checkpoint,
    checkpoint_meta,
    load_dense,
    load_tables,
    newest_whole_checkpoint,
    save_checkpoint,
)
from pad_dist.training.ranks import Ranks

CPU = torch.device("cpu")
META = {"fingerprint": "abc", "epoch": 4}


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """This process as the only rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    assert dist.group.WORLD is not None
    yield Ranks(0, 1, CPU, dist.group.WORLD)
    dist.destroy_process_group()


def tables(seed: int) -> Tables:
    made = build_tables(TableSpec(("id", "aligned"), 30, 4, 0.1, 0.0), SparseConfig(backend="torch"), CPU, 1)
    made.initialise(seed=seed, std=0.5)
    return made


def dense(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    # A transposed weight is not contiguous, as one of a tied or converted model may be.
    return {"a.weight": torch.randn(3, 5, generator=generator).T, "gate.logits": torch.randn(11, generator=generator)}


def save(folder: Path, step: int, ranks: Ranks, meta: dict[str, Any] = META, best: int | None = None) -> None:
    weights = tables(step).state()
    save_checkpoint(
        str(folder),
        step,
        dense=dense(step),
        optimizer={},
        tables=weights,
        best=step if best is None else best,
        meta=meta,
        ranks=ranks,
    )


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_gives_back_what_was_saved(tmp_path: Path, ranks: Ranks) -> None:
    save(tmp_path, 12, ranks)
    path = best_checkpoint(str(tmp_path), "the test")
    assert checkpoint_meta(path).items() >= {**META, "step": 12, "best": 12}.items()
    loaded = load_dense(path)
    assert loaded.keys() == dense(12).keys()
    assert all(loaded[name].equal(value) for name, value in dense(12).items())
    other = tables(0)
    load_tables(path, other.state())
    for name, weights in tables(12).state().items():
        assert torch.equal(other.state()[name], weights), name


def test_one_table_loads_under_another_name_and_leaves_the_rest(tmp_path: Path, ranks: Ranks) -> None:
    save(tmp_path, 12, ranks)
    other = tables(0)
    load_tables(best_checkpoint(str(tmp_path), "the test"), {"id": other.state()["aligned"]})
    assert torch.equal(other.state()["aligned"], tables(12).state()["id"])
    assert torch.equal(other.state()["id"], tables(0).state()["id"])


def test_complete_is_written_last_and_only_then_is_the_older_one_removed(tmp_path: Path, ranks: Ranks) -> None:
    save(tmp_path, 3, ranks)
    with pytest.raises(TypeError):
        save(tmp_path, 4, ranks, meta={"epoch": object()})  # what COMPLETE cannot hold
    assert steps(tmp_path) == ["step-000000003", "step-000000004"]
    cut_short = tmp_path / "step-000000004"
    assert (cut_short / "dense.safetensors").exists() and list((cut_short / "tables").iterdir())
    assert {path.name for path in cut_short.iterdir()} == {"dense.safetensors", "optimizer.safetensors", "tables"}
    assert best_checkpoint(str(tmp_path), "the test").name == "step-000000003"


def test_the_next_checkpoint_clears_away_older_and_half_written_ones(tmp_path: Path, ranks: Ranks) -> None:
    save(tmp_path, 9, ranks)
    (tmp_path / "step-000000099" / "tables").mkdir(parents=True)
    (tmp_path / "metrics.jsonl").touch()
    save(tmp_path, 10, ranks)
    assert steps(tmp_path) == ["metrics.jsonl", "step-000000010"]


def test_a_stage_that_starts_over_replaces_the_later_steps_of_its_first_start(tmp_path: Path, ranks: Ranks) -> None:
    save(tmp_path, 500, ranks)
    save(tmp_path, 0, ranks)
    assert best_checkpoint(str(tmp_path), "the test").name == "step-000000000"


def test_a_half_written_step_is_written_anew(tmp_path: Path, ranks: Ranks) -> None:
    rest = tmp_path / "step-000000007" / "tables" / "shard-00009-model-00009-of-00009.safetensors"
    rest.parent.mkdir(parents=True)
    rest.write_bytes(b"cut short")
    save(tmp_path, 7, ranks)
    other = tables(0)
    load_tables(best_checkpoint(str(tmp_path), "the test"), other.state())
    assert torch.equal(other.state()["id"], tables(7).state()["id"])


def test_the_best_step_stays_beside_the_newest(tmp_path: Path, ranks: Ranks) -> None:
    save(tmp_path, 3, ranks)
    for step in (6, 9):
        save(tmp_path, step, ranks, best=3)
    assert steps(tmp_path) == ["step-000000003", "step-000000009"]
    assert best_checkpoint(str(tmp_path), "the test").name == "step-000000003"
    assert newest_whole_checkpoint(str(tmp_path), pytest.fail) == tmp_path / "step-000000009"


@pytest.mark.parametrize("damage", ["cut short", "gone"])
def test_a_damaged_checkpoint_is_passed_over_by_name(tmp_path: Path, ranks: Ranks, damage: str) -> None:
    save(tmp_path, 3, ranks)
    save(tmp_path, 9, ranks, best=3)
    told: list[str] = []
    file = tmp_path / "step-000000009" / "dense.safetensors"
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1])
    assert newest_whole_checkpoint(str(tmp_path), told.append) == tmp_path / "step-000000003"
    assert told == [f"{file.parent} is passed over, damaged: {file}"]
    shutil.rmtree(tmp_path / "step-000000003")
    assert newest_whole_checkpoint(str(tmp_path), told.append) is None


@pytest.mark.parametrize("half_written", [False, True])
def test_without_a_complete_checkpoint_the_command_that_makes_one_is_named(tmp_path: Path, half_written: bool) -> None:
    if half_written:
        (tmp_path / "step-000000001").mkdir()
    with pytest.raises(UserError, match=r"holds no complete checkpoint: run `deepspeed launchers/align\.py` first"):
        best_checkpoint(str(tmp_path), "deepspeed launchers/align.py")


def test_weights_are_safetensors_and_nothing_else(tmp_path: Path, ranks: Ranks) -> None:
    save(tmp_path, 1, ranks)
    weights = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "COMPLETE"]
    names = set()
    for path in weights:
        assert path.suffix == ".safetensors"
        with safe_open(path, "pt") as file:
            names |= set(file.keys())
    assert names == {"a.weight", "gate.logits", "id", "aligned"}
