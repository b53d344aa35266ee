"""Checkpoints of one process: whole or ignored, the best and the newest stay, nothing to unpickle."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pad_dist import storage
from pad_dist.checkpoint import files as checkpoint
from pad_dist.checkpoint import shard_files
from pad_dist.checkpoint.files import (
    best_checkpoint,
    checkpoint_meta,
    complete_steps,
    damaged,
    load_dense,
    load_optimizer,
    load_shards,
    wrong_sizes,
)
from pad_dist.checkpoint.saver import Saver
from pad_dist.config import CheckpointConfig, SparseConfig
from pad_dist.distributed.context import DistributedContext
from pad_dist.errors import UserError
from pad_dist.sparse.build import build_tables
from pad_dist.sparse.spec import Tables, TableSpec
from tests.support import checkpoints

CPU = torch.device("cpu")
META = {"epoch": 4}


def tables(seed: int) -> Tables:
    spec, config = TableSpec(("id", "aligned"), 30, 4, 0.1, 0.0), SparseConfig(backend="torch", optimizer="adagrad")
    (made := build_tables(spec, config, CPU, 1)).initialise(seed=seed, std=0.5)
    return made


def dense(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    # A transposed weight is not contiguous, as one of a tied or converted model may be.
    return {"a.weight": torch.randn(3, 5, generator=generator).T, "gate.logits": torch.randn(11, generator=generator)}


def save(folder: Path | str, step: int, context: DistributedContext, **settings: Any) -> None:
    checkpoints.save(str(folder), step, tables(step).shards(), context, dense=dense(step), **{"meta": META} | settings)


def values(tables: Tables) -> dict[str, torch.Tensor]:
    return {shard.name: shard.tensor for shard in tables.shards()}


def names(folder: Path | str) -> list[str]:
    return storage.names(str(folder))


def test_a_checkpoint_gives_back_what_was_saved_from_any_store(place: str, context: DistributedContext) -> None:
    save(place, 12, context)
    path = best_checkpoint(place, "the test")
    assert checkpoint_meta(path).items() >= {**META, "step": 12, "best": 12, "world_size": 1}.items()
    loaded = load_dense(path)
    assert loaded.keys() == dense(12).keys()
    assert all(loaded[name].equal(value) for name, value in dense(12).items())
    other = tables(0)
    load_shards(path, other.shards())
    for name, array in values(tables(12)).items():
        assert torch.equal(values(other)[name], array), name
    assert damaged(path) == wrong_sizes(path) == []


def test_one_table_loads_under_another_name_and_leaves_the_rest(tmp_path: Path, context: DistributedContext) -> None:
    save(tmp_path, 12, context)
    other = tables(0)
    shard = next(shard for shard in other.shards() if shard.name == "aligned")
    load_shards(best_checkpoint(str(tmp_path), "the test"), [replace(shard, name="id")])
    assert torch.equal(values(other)["aligned"], values(tables(12))["id"])
    assert torch.equal(values(other)["id"], values(tables(0))["id"])


def test_tables_are_plain_safetensors_that_other_programs_read(tmp_path: Path, context: DistributedContext) -> None:
    save(tmp_path, 12, context)
    arrays = load_file(tmp_path / "step-000000012" / "tables-00000.safetensors")
    assert arrays.keys() == {f"{name}@0,0" for name in values(tables(12))}
    assert torch.equal(arrays["id@0,0"], values(tables(12))["id"])


def test_a_missing_array_or_another_shape_is_refused_by_name(tmp_path: Path, context: DistributedContext) -> None:
    save(tmp_path, 12, context)
    path = best_checkpoint(str(tmp_path), "the test")
    shard = tables(0).shards()[0]
    with pytest.raises(UserError, match=r"step-000000012 has no array text: it has aligned, aligned.momentum1, id, "):
        load_shards(path, [replace(shard, name="text")])
    with pytest.raises(UserError, match=r"id of \S+ has the shape \(30, 4\), not \(31, 4\)"):
        load_shards(path, [replace(shard, shape=(31, 4))])


def test_complete_is_written_last(tmp_path: Path, context: DistributedContext) -> None:
    save(tmp_path, 3, context)
    with pytest.raises(UserError, match="TypeError: Object of type object is not JSON serializable"):
        save(tmp_path, 4, context, meta={"epoch": object()})  # what COMPLETE cannot hold
    assert names(tmp_path) == ["step-000000003"]
    assert best_checkpoint(str(tmp_path), "the test") == f"{tmp_path}/step-000000003"


def test_the_next_checkpoint_clears_away_older_and_half_written_ones(place: str, context: DistributedContext) -> None:
    save(place, 9, context)
    storage.write_bytes(f"{place}/step-000000099/tables-00000.safetensors", b"half")
    storage.write_bytes(f"{place}/metrics.jsonl", b"")
    save(place, 10, context)
    assert names(place) == ["metrics.jsonl", "step-000000010"]


def test_a_stage_that_starts_over_replaces_the_later_steps_of_its_first_start(
    tmp_path: Path, context: DistributedContext
) -> None:
    save(tmp_path, 500, context)
    save(tmp_path, 0, context)
    assert names(tmp_path) == ["step-000000000"]


def test_a_step_that_is_saved_again_by_its_run_is_never_gone(tmp_path: Path, context: DistributedContext) -> None:
    file, complete = (tmp_path / "step-000000007" / name for name in ("tables-00000.safetensors", "COMPLETE"))
    with Saver(str(tmp_path), CheckpointConfig(), context, print) as saver:
        written = set()
        for place in (1, 2):
            saver.save(7, shards=tables(7).shards(), dense={}, optimizer={}, best=7, meta={"place": place})
            saver.finish()
            written.add(file.stat().st_mtime_ns)
            assert json.loads(complete.read_text())["place"] == place
        assert len(written) == 1
    assert damaged(str(file.parent)) == []
    save(tmp_path, 7, context, meta={"place": 3})  # by a run that has started over
    assert "place" in json.loads(complete.read_text()) and load_dense(str(file.parent)).keys() == dense(7).keys()


def test_a_half_written_step_is_written_anew(tmp_path: Path, context: DistributedContext) -> None:
    rest = tmp_path / "step-000000007" / "tables-00009.safetensors"
    rest.parent.mkdir(parents=True)
    rest.write_bytes(b"cut short")
    save(tmp_path, 7, context)
    other = tables(0)
    load_shards(best_checkpoint(str(tmp_path), "the test"), other.shards())
    assert torch.equal(values(other)["id"], values(tables(7))["id"])
    assert not rest.exists()


def test_the_newest_ones_stay_and_the_best_of_each(tmp_path: Path, context: DistributedContext) -> None:
    save(tmp_path, 3, context)
    for step in (6, 9, 12):
        save(tmp_path, step, context, best=3, keep=2)
    assert complete_steps(str(tmp_path)) == [12, 9, 3]
    assert best_checkpoint(str(tmp_path), "the test") == f"{tmp_path}/step-000000003"
    save(tmp_path, 15, context, keep=2)
    assert complete_steps(str(tmp_path)) == [15, 12, 3]
    save(tmp_path, 18, context, best=15, keep=1)
    assert complete_steps(str(tmp_path)) == [18, 15]


@pytest.mark.parametrize("name", ["dense.safetensors", "tables-00000.safetensors"])
@pytest.mark.parametrize("damage", ["cut short", "gone", "one bit", "pickle"])
def test_a_damaged_file_is_named_and_never_loaded(
    tmp_path: Path, context: DistributedContext, name: str, damage: str
) -> None:
    save(tmp_path, 3, context)
    path = f"{tmp_path}/step-000000003"
    file = Path(path, name)
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    elif damage == "cut short":
        file.write_bytes(content[:-1])
    elif damage == "one bit":
        file.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    else:
        evil = pickle.dumps(Evil(tmp_path / "executed"))
        file.write_bytes(evil + content[len(evil) :])
    assert bool(wrong_sizes(path)) == (damage in ("gone", "cut short"))
    (said,) = damaged(path)
    assert said.startswith(str(file))
    with pytest.raises(UserError, match=name):
        load_dense(path) if name.startswith("dense") else load_shards(path, tables(0).shards())
    assert not (tmp_path / "executed").exists()


class Evil:
    """Unpickled, it leaves a file."""

    def __init__(self, proof: Path) -> None:
        self._proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._proof),)


def test_pickles_in_place_of_a_checkpoint_are_refused_and_never_executed(
    tmp_path: Path, context: DistributedContext
) -> None:
    proof = tmp_path / "executed"
    pickle.loads(pickle.dumps(Evil(proof)))
    assert proof.exists()  # so it works where it is unpickled
    proof.rmdir()
    stage = tmp_path / "stage"
    save(stage, 3, context)
    step = stage / "step-000000003"
    for name in ("model.pt", "pytorch_model.bin", "__0_0.distcp", ".metadata", "tables-00001.safetensors"):
        (step / name).write_bytes(pickle.dumps(Evil(proof)))
    load_shards(str(step), tables(0).shards())  # what COMPLETE does not name is not opened
    for name in ("dense.safetensors", "optimizer.safetensors", "tables-00000.safetensors"):
        torch.save(Evil(proof), step / name)
    for load in (load_dense, load_optimizer, lambda path: load_shards(path, tables(0).shards())):
        with pytest.raises(UserError, match="is damaged"):
            load(str(step))
    # Also where COMPLETE vouches for them.
    complete = json.loads((step / "COMPLETE").read_text())
    content = (step / "dense.safetensors").read_bytes()
    complete["files"]["dense.safetensors"] = {"bytes": len(content), "checksum": shard_files.checksum(content)}
    (step / "COMPLETE").write_text(json.dumps(complete))
    with pytest.raises(UserError, match=r"dense\.safetensors is no safetensors file"):
        load_dense(str(step))
    torch.save(Evil(proof), step / "COMPLETE")
    with pytest.raises(UserError, match="COMPLETE is not valid JSON"):
        load_dense(str(step))
    assert not proof.exists()


def test_a_checkpoint_of_another_format_is_refused_with_the_fix(tmp_path: Path, context: DistributedContext) -> None:
    save(tmp_path, 3, context)
    complete = tmp_path / "step-000000003" / "COMPLETE"
    complete.write_text(json.dumps(json.loads(complete.read_text()) | {"format": 99}))
    with pytest.raises(UserError, match=r"checkpoint format 99, this pad-dist reads 3: use the version .* or remove"):
        best_checkpoint(str(tmp_path), "the test")


@pytest.mark.parametrize("half_written", [False, True])
def test_without_a_complete_checkpoint_the_command_that_makes_one_is_named(tmp_path: Path, half_written: bool) -> None:
    if half_written:
        (tmp_path / "step-000000001").mkdir()
    with pytest.raises(UserError, match=r"holds no complete checkpoint: run `deepspeed launchers/align\.py` first"):
        best_checkpoint(str(tmp_path), "deepspeed launchers/align.py")


def test_weights_are_safetensors_and_nothing_else(tmp_path: Path, context: DistributedContext) -> None:
    save(tmp_path, 1, context)
    weights = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "COMPLETE"]
    arrays = set()
    for path in weights:
        assert path.suffix == ".safetensors"
        with safe_open(path, "pt") as file:
            arrays |= set(file.keys())
    assert arrays == {"a.weight", "gate.logits", *(f"{name}@0,0" for name in values(tables(1)))}


def test_the_package_unpickles_nothing() -> None:
    root = Path(checkpoint.__file__).parents[2]
    sources = [path for room in ("pad_dist", "spark_jobs", "launchers") for path in (root / room).rglob("*.py")]
    assert len(sources) > 50
    for path in sources:
        text = path.read_text()
        for call in (
            "pickle.load",
            "cloudpickle",
            "yaml.load(",
            "torch.load(",
            "joblib",
            "allow_pickle=True",
            "pd.read_pickle",
        ):
            assert call not in text, f"{path}: {call}"


def test_a_store_that_fails_ends_the_run_or_not_by_config_and_older_checkpoints_stay(
    tmp_path: Path, context: DistributedContext, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 3, context)
    monkeypatch.setattr(shard_files.BlockFile, "push", no_space)
    with pytest.raises(
        UserError, match=r"step-000000006 could not be written, .*: rank 0: OSError: \[Errno 28\] No sp"
    ):
        save(tmp_path, 6, context)
    save(tmp_path, 9, context, on_error="continue")
    said = capsys.readouterr().out
    assert "step-000000009 could not be written" in said and "training goes on" in said and said.count("\n") == 1
    assert names(tmp_path) == ["step-000000003"]
    assert damaged(best_checkpoint(str(tmp_path), "the test")) == []
    shutil.rmtree(tmp_path / "step-000000003")


def no_space(self: shard_files.BlockFile, size: int) -> None:
    raise OSError(28, "No space left on device")
