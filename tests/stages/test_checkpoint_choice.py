"""Which checkpoint a stage goes on from, and what is said of the others; one run at a time."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pad_dist import storage
from pad_dist.checkpoint import lock
from pad_dist.checkpoint.lock import locked
from pad_dist.config import Config, SparseConfig
from pad_dist.config.load import load_config
from pad_dist.distributed.context import DistributedContext
from pad_dist.errors import UserError
from pad_dist.sparse.build import build_tables
from pad_dist.sparse.spec import TableSpec
from pad_dist.stages.fingerprint import made_from
from pad_dist.stages.resume import checkpoint_to_resume
from tests.support import checkpoints
from tests.support.stages import stage_of
from tests.support.tiny_dataset import random_sequences, write_tiny_dataset

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path: Path, context: DistributedContext) -> Path:
    """A config, and two checkpoints of its pretrain stage, the older one the best."""
    dataset = write_tiny_dataset(tmp_path / "dataset", random_sequences(20, 30, seed=1), 30)
    (tmp_path / "run.yaml").write_text(f"name: tiny\nout: {tmp_path}/run\ndataset: {dataset}\n")
    tables = build_tables(TableSpec(("id",), 31, 4, 0.1, 0.0), SparseConfig(backend="torch"), CPU, 1)
    spec = stage_of(config(tmp_path), "pretrain")
    for step in (3, 6):
        meta = {"made_from": made_from(spec), "stage": "pretrain"}
        checkpoints.save(spec.checkpoint_directory, step, tables.shards(), context, best=3, meta=meta)
    return tmp_path


def config(folder: Path, *overrides: str) -> Config:
    return load_config(f"{folder}/run.yaml", list(overrides))


def chosen(
    run: Path, context: DistributedContext, *overrides: str, stage: str = "pretrain"
) -> tuple[str | None, list[str]]:
    """The name of the checkpoint, and what was said."""
    said: list[str] = []
    path = checkpoint_to_resume(stage_of(config(run, *overrides), stage), context, said.append)
    assert not any("\n" in line for line in said)
    return path and path.rsplit("/", 1)[1], said


def refused(run: Path, context: DistributedContext, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        chosen(run, context, *overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def step_dir(run: Path, step: int) -> Path:
    return run / "run" / "pretrain" / f"step-{step:09d}"


def rewrite(run: Path, step: int, **changed: Any) -> None:
    file = step_dir(run, step) / "COMPLETE"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def test_auto_is_the_newest_and_never_is_none(run: Path, context: DistributedContext) -> None:
    assert chosen(run, context) == ("step-000000006", [])
    assert chosen(run, context, "checkpoint.resume=never") == (None, [])


@pytest.mark.parametrize("file", ["tables-00000.safetensors", "dense.safetensors", "COMPLETE"])
@pytest.mark.parametrize("damage", ["gone", "cut short", "one bit"])
def test_a_damaged_one_is_passed_over_by_name(run: Path, context: DistributedContext, file: str, damage: str) -> None:
    place = step_dir(run, 6) / file
    content = place.read_bytes()
    if damage == "gone":
        place.unlink()
    else:
        place.write_bytes(content[:-5] if damage == "cut short" else content[:-9] + b"\xff" + content[-8:])
    path, said = chosen(run, context)
    assert path == "step-000000003"
    if (file, damage) != ("COMPLETE", "gone"):  # then it was never complete
        (line,) = said
        assert line.startswith(f"{place.parent} is passed over") and str(place) in line
    assert "damaged" in refused(run, context, f"checkpoint.resume={place.parent}") or file == "COMPLETE"


def test_one_whose_best_is_gone_is_passed_over(run: Path, context: DistributedContext) -> None:
    shutil.rmtree(step_dir(run, 3))
    path, (line,) = chosen(run, context)
    assert path is None and "step-000000003 is no complete checkpoint" in line


def test_other_settings_begin_anew_and_are_told(run: Path, context: DistributedContext) -> None:
    path, said = chosen(run, context, "model.dim=64", "pretrain.lr=0.5")
    assert path is None
    (line,) = said
    assert "made with other settings or data, so training begins anew: " in line
    assert line.endswith("model.dim: 128 -> 64, pretrain.lr: 0.001 -> 0.5")


def test_where_a_run_works_is_no_other_setting(run: Path, context: DistributedContext) -> None:
    where = ["training.world_size=8", "training.zero_stage=3", "checkpoint.every=5", "sparse.sharding=table_wise"]
    assert chosen(run, context, *where) == ("step-000000006", [])


def test_other_libraries_are_refused_with_the_ways_out_unless_it_is_named(
    run: Path, context: DistributedContext
) -> None:
    versions = json.loads((step_dir(run, 6) / "COMPLETE").read_text())["versions"]
    rewrite(run, 6, versions=versions | {"torch": "1.0.0"})
    message = refused(run, context)
    path = step_dir(run, 6)
    assert f"{path} was written by other libraries: torch: 1.0.0 -> {versions['torch']}: install those, or " in message
    assert f"checkpoint.resume={path} to go on with these, or checkpoint.resume=never" in message
    assert chosen(run, context, f"checkpoint.resume={path}")[0] == "step-000000006"


def test_another_format_is_refused(run: Path, context: DistributedContext) -> None:
    rewrite(run, 6, format=0)
    assert "has the checkpoint format 0, this pad-dist reads 3" in refused(run, context)


def test_one_may_be_named_that_is_not_the_newest_but_not_of_other_settings_or_elsewhere(
    run: Path, context: DistributedContext
) -> None:
    named = f"checkpoint.resume={step_dir(run, 3)}"
    assert chosen(run, context, named) == ("step-000000003", [])
    assert chosen(run, context, named, stage="align") == (None, [])  # it is of one stage; others go on as they are
    message = refused(run, context, named, "model.dim=64")
    assert "made with other settings or data: model.dim: 128 -> 64: set them as they were" in message
    message = refused(run, context, named, f"checkpoint.root={run}/elsewhere")
    assert f"is not in {run}/elsewhere/pretrain: copy it there" in message
    assert "is no complete checkpoint" in refused(run, context, f"checkpoint.resume={run}/nothing")


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_a_second_run_is_refused_naming_the_first_until_it_has_ended(
    tmp_path: Path, context: DistributedContext, kind: str
) -> None:
    root = str(tmp_path) if kind == "folder" else f"memory://{tmp_path.name}"
    stage, other = f"{root}/stage", f"{root}/other"
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with locked([stage, other], "first", context):
            holder = storage.read_json(f"{other}/LOCK")
            assert holder["pid"] == os.getpid()
            for place in (stage, other):  # as another process left it
                storage.write_json(f"{place}/LOCK", holder | {"pid": sleeper.pid})
            with pytest.raises(UserError, match=rf"stage is written by run first, process {sleeper.pid} on ") as error:
                locked([stage], "second", context).__enter__()
            assert "\n" not in str(error.value)
        with locked([stage, other], "second", context):
            pass
        assert storage.names(stage) == storage.names(other) == []
    finally:
        sleeper.kill()
        sleeper.wait()


@pytest.mark.parametrize("freed", ["dead", "stale", "elsewhere", "torn"])
def test_a_lock_that_nobody_holds_any_more_is_free(tmp_path: Path, context: DistributedContext, freed: str) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = freed == "dead"
    age = 2 * lock.STALE_S if freed == "stale" else 0.0
    pid = ended.pid if here else 1
    host = "elsewhere" if freed == "elsewhere" else socket.gethostname()
    content = json.dumps({"run": "old", "host": host, "pid": pid, "since": "then", "time": time.time() - age})
    (tmp_path / "LOCK").write_text(content[:9] if freed == "torn" else content)
    if freed == "elsewhere":  # whether that process lives cannot be known here
        with pytest.raises(UserError, match="process 1 on elsewhere"):
            locked([str(tmp_path)], "new", context).__enter__()
        return
    with locked([str(tmp_path)], "new", context):
        assert json.loads((tmp_path / "LOCK").read_text())["run"] == "new"


def test_a_lock_is_renewed_while_it_is_held(
    tmp_path: Path, context: DistributedContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "STALE_S", 0.2)
    with locked([str(tmp_path)], "run", context):
        first = json.loads((tmp_path / "LOCK").read_text())["time"]
        time.sleep(0.5)
        assert json.loads((tmp_path / "LOCK").read_text())["time"] > first + 0.2
