"""pad-dist checkpoint: what it shows and what it finds damaged."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from pad_dist import storage
from pad_dist.cli.main import app
from pad_dist.distributed.context import DistributedContext
from pad_dist.sparse.spec import TableShard
from tests.support import checkpoints

BEST = {"epoch": 2, "step": 480, "metrics": {"hr@10": 0.125}}
DATASET = {"version": "000002-1f3a5b7c", "content_hash": "9d0c5a7b3300" + "0" * 52, "item_map": [[40, "ab"]]}
META = {
    "stage": "align",
    "progress": {"epoch": 3, "place": 7, "step": 480, "best": BEST},
    "sharding": "row_wise",
    "dataset": DATASET,
}


@pytest.fixture(params=["folder", "memory"])
def stage(request: pytest.FixtureRequest, tmp_path: Path, context: DistributedContext) -> str:
    """A stage's directory with one checkpoint in it."""
    directory = str(tmp_path / "align") if request.param == "folder" else f"memory://{uuid.uuid4().hex}/align"
    shards = [
        TableShard("id", torch.rand(700, 16), (0, 0), (700, 16)),
        TableShard("id.momentum1", torch.rand(700), (0,), (700,)),
    ]
    checkpoints.save(directory, 480, shards, context, meta=META)
    return directory


def call(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["checkpoint", *arguments])
    return done.exit_code, " ".join(done.output.split())


def test_show_tells_where_training_stood_and_what_the_checkpoint_holds(stage: str) -> None:
    status, text = call("show", stage)
    assert status == 0
    for fact in (
        "align",
        "480",
        "epoch 3, after 7 steps of it",
        "hr@10 0.125",
        "1 rank(s), row_wise",
        torch.__version__,
    ):
        assert fact in text, fact
    assert "version 000002-1f3a5b7c (content 9d0c5a7b3300)" in text
    assert "700 x 16" in text and f"{700 * 16 * 4:,}" in text and "id.momentum1" in text and "2,800" in text
    assert call("show", f"{stage}/step-000000480") == (0, text)


def test_verify_reads_everything_and_names_what_is_damaged(stage: str) -> None:
    assert call("verify", stage) == (0, f"{stage}/step-000000480 is whole: 3 files")
    tables, dense = (f"{stage}/step-000000480/{name}.safetensors" for name in ("tables-00000", "dense"))
    content = storage.read_bytes(tables)
    storage.write_bytes(tables, content[:-2000] + bytes([content[-2000] ^ 1]) + content[-1999:])
    storage.remove(dense)
    status, text = call("verify", stage)
    assert status == 1
    assert f"{tables} is damaged: rows of id.momentum1 are not what was saved" in text and f"{dense} is missing" in text


def test_a_place_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    for command in ("show", "verify"):
        status, text = call(command, str(tmp_path))
        assert status == 2 and "is no checkpoint and holds none" in text
