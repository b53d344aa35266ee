"""Training starts from an earlier run when the dataset has grown: real ranks, real checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pad_dist.dataset import versions
from tests.support.stages import STAGES
from tests.support.tiny_text import write_tiny_text
from tests.support.tiny_versions import publish_tiny

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("warm_start_worker.py")
KNOWN, ITEMS, K = 40, 44, 10
TABLES = {"pretrain": ["id"], "align": ["aligned"], "disentangle": ["id", "aligned"]}
Arrays = dict[str, NDArray[np.float32]]


def histories(first: int, last: int, users: int) -> list[list[int]]:
    """Each user takes 8 different items of first..last, in random order."""
    rng = np.random.default_rng(first)
    return [(first + rng.permutation(last - first + 1)[:8]).tolist() for _ in range(users)]


SEQUENCES = histories(1, 20, 60) + histories(21, 40, 60)


def texts(items: int) -> NDArray[np.float16]:
    """Items 1..20 and 42 read alike, so do 21..40 and the other new ones; row 0 zeros."""
    rng = np.random.default_rng(0)
    kinds = rng.standard_normal((2, 6))
    kind = np.array([0, *[0] * 20, *[1] * 20, 1, 0, 1, 1])[: items + 1]
    rows = (kinds[kind] + 0.3 * rng.standard_normal((ITEMS + 1, 6))[: items + 1]).astype(np.float16)
    rows[0] = 0
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config, run `old` on version 1, and version 2, grown by four items that nobody has bought yet."""
    folder = tmp_path_factory.mktemp("warm_start")
    root = str(folder / "dataset")
    stage = {"epochs": 0}
    settings = {
        "name": "tiny",
        "out": str(folder / "old"),
        "dataset": root,
        "model": {"dim": 16, "max_length": 8, "dropout": 0.0},
        "training": {"batch_size": 16, "loss": {"negatives": 40, "log_q": True}},
        "pretrain": {"epochs": 12, "lr": 0.01, "weight_decay": 0.0},
        "align": stage,
        "disentangle": stage,
    }
    (folder / "run.yaml").write_text(json.dumps(settings))
    publish_tiny(root, SEQUENCES, [[KNOWN, "a" * 64]])
    write_tiny_text(root, 6, rows=texts(KNOWN))
    work(folder, "train", "old", ranks=2)
    publish_tiny(root, SEQUENCES, [[KNOWN, "a" * 64], [ITEMS, "b" * 64]])
    write_tiny_text(root, 6, rows=texts(ITEMS))
    return folder


@pytest.fixture(scope="module", params=["1", "2", "1 torch"])
def started(folder: Path, request: pytest.FixtureRequest) -> Arrays:
    """The stages of a run that starts warm from `old`, before their first step."""
    ranks, _, backend = request.param.partition(" ")
    overrides = ["seed=1", f"warm_start={folder}/old", f"sparse.backend={backend or 'torchrec'}"]
    return work(folder, "start", f"new {request.param}", *overrides, ranks=int(ranks))


def work(folder: Path, action: str, out: str, *overrides: str, ranks: int) -> Arrays:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [*torchrun, str(WORKER), action, str(folder / "run.yaml"), str(folder / f"{out}.npz")]
    run([*command, f"out={folder / out}", *overrides])
    return dict(np.load(folder / f"{out}.npz"))


def run(command: list[str]) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_known_rows_and_dense_weights_are_those_of_the_warm_start(folder: Path, started: Arrays) -> None:
    old = dict(np.load(folder / "old.npz"))
    assert old.keys() == started.keys()
    for name in old:
        if ".tables." in name:
            assert len(started[name]) == ITEMS + 1
            np.testing.assert_array_equal(started[name][: KNOWN + 1], old[name], err_msg=name)
        elif ".dense." in name:
            np.testing.assert_array_equal(started[name], old[name], err_msg=name)


def test_an_item_has_its_share_of_the_train_interactions_at_any_world_size(started: Arrays) -> None:
    trained = np.bincount([item for history in SEQUENCES for item in history[:-2]], minlength=ITEMS + 1)
    for stage in STAGES:
        np.testing.assert_allclose(started[f"{stage}.share"], trained / trained.sum(), rtol=1e-6)


def test_the_row_of_a_new_item_is_the_mean_of_the_items_that_read_like_it(started: Arrays) -> None:
    vectors = texts(ITEMS).astype(np.float64)
    vectors[1:] -= vectors[1:].mean(0)
    vectors[1:] /= np.linalg.norm(vectors[1:], axis=1, keepdims=True)
    for item in range(KNOWN + 1, ITEMS + 1):
        near = 1 + np.argsort(-(vectors[1 : KNOWN + 1] @ vectors[item]))[:K]
        assert {n > 20 for n in near} == {item != 42}
        for stage in STAGES:
            for name in TABLES[stage]:
                table = started[f"{stage}.tables.{name}"]
                np.testing.assert_allclose(table[item], table[near].mean(0), rtol=1e-5, atol=1e-7)


def test_a_new_item_ranks_among_those_it_reads_like_at_once(started: Arrays) -> None:
    after_first, after_last = started["pretrain.scores"]
    for scores, like, kin, others in (
        (after_first, 42, range(1, 21), range(21, 41)),
        (after_last, 41, range(21, 41), range(1, 21)),
    ):
        assert np.isfinite(scores).all()
        assert scores[like] > scores[others].max()
        assert (scores[kin] > scores[like]).sum() < len(kin)


def test_a_stage_that_starts_warm_trains_and_tells_its_version(folder: Path) -> None:
    out = folder / "launched"
    deepspeed = [str(Path(sys.executable).with_name("deepspeed")), "--quiet", "--num_gpus", "2"]
    overrides = [f"warm_start={folder}/old", "pretrain.epochs=1"]
    script = str(ROOT / "launchers" / "pretrain.py")
    said = run([*deepspeed, script, "--config", str(folder / "run.yaml"), "--out", str(out), *overrides])
    assert "44 items" in said and "2 rank(s)" in said
    result = json.loads((out / "pretrain/result.json").read_text())
    complete = max((out / "pretrain").glob("step-*/COMPLETE"))
    meta = json.loads(complete.read_text())
    version = versions.current(str(folder / "dataset"))
    assert result["dataset"] == meta["dataset"]
    assert meta["dataset"]["version"] == version and len(meta["dataset"]["content_hash"]) == 64
    assert meta["dataset"]["item_map"] == [[KNOWN, "a" * 64], [ITEMS, "b" * 64]]
    assert meta["config"]["dataset"] == versions.version_url(str(folder / "dataset"), version)
    # It starts where the run before stopped.
    first, *_ = [json.loads(line) for line in (out / "pretrain/metrics.jsonl").read_text().splitlines()]
    before = json.loads((folder / "old/pretrain/result.json").read_text())["valid"]["hr@10"]
    assert first["epoch"] == 0 and first["hr@10"] > 0.6 * before > 0
