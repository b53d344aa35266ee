"""What a stage takes from the config, and what it needs to be installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pad_dist.config.load import parse_config
from pad_dist.distributed.context import DistributedContext
from pad_dist.errors import UserError
from pad_dist.stages.stage_runtime import build_runtime
from pad_dist.training.loop import Best, Bests
from tests.support.parity import WORKER, write_settings
from tests.support.stages import stage_of
from tests.support.tiny_dataset import random_sequences, write_tiny_dataset
from tests.support.tiny_text import write_tiny_text

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def tiny(directory: Path) -> dict[str, Any]:
    """Settings of a small model, and the dataset with texts that they name."""
    dataset = write_tiny_dataset(directory / "dataset", random_sequences(200, 300, seed=1), 300)
    write_tiny_text(dataset, 8)
    return {"name": "tiny", "dataset": dataset, "model": {"dim": 8, "max_length": 8, "dropout": 0.3}}


def test_alignments_run_on_the_configured_share_of_the_items(tmp_path: Path) -> None:
    settings = {
        **tiny(tmp_path),
        "training": {"batch_size": 32, "loss": {"negatives": 100}},
        "align": {"item_share": 0.3},
    }
    (tmp_path / "tiny.yaml").write_text(json.dumps(settings))
    command = [sys.executable, str(Path(__file__).with_name("batches_worker.py")), "tiny.yaml", "shares.json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    shares = json.loads((tmp_path / "shares.json").read_text())
    assert shares["pad align"] == shares["ctrl align"] == pytest.approx(0.3, abs=0.07)  # five standard deviations
    assert shares["pad pretrain"] == shares["pad disentangle"] == 1


def test_the_torch_backend_trains_where_neither_torchrec_nor_fbgemm_is_installed(tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith(("torchrec", "fbgemm")):
            (packages / entry.name).symlink_to(entry)
    variant = "0 fp32 method=id sparse.backend=torch"
    # -S: no other packages than these.
    command = [sys.executable, "-S", str(WORKER), str(write_settings(tmp_path)), str(tmp_path / "losses.json"), variant]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{packages}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    losses = json.loads((tmp_path / "losses.json").read_text())[variant]["pretrain"]
    assert losses[-1] < losses[0]
    (checkpoint,) = (tmp_path / "out").rglob("COMPLETE")
    assert json.loads(checkpoint.read_text())["versions"].keys() == {"torch", "deepspeed"}


def test_a_stage_may_have_a_dropout_of_its_own(tmp_path: Path) -> None:
    values = tiny(tmp_path) | {"sparse": {"backend": "torch"}, "pretrain": {"dropout": 0.6}}
    context = DistributedContext(0, 1, torch.device("cpu"), None)  # type: ignore[arg-type]
    for stage, dropout in (("pretrain", 0.6), ("align", 0.3)):
        model = build_runtime(stage_of(parse_config(values, "x"), stage), context).model
        assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {dropout}


def test_the_best_validation_is_the_last_one_whose_checkpoint_was_written() -> None:
    first, second, third = (Best(epoch, 10 * epoch, {"hr@10": 0.1 * epoch}) for epoch in (1, 2, 3))
    bests = Bests(None)
    assert bests.whole(first, set()) == first
    assert bests.whole(second, set()) == second
    assert bests.whole(second, {20}) == first
    assert bests.whole(third, {20}) == third
    assert bests.whole(third, {20, 30}) == first


def test_a_stage_none_of_whose_checkpoints_was_written_ends_with_an_error() -> None:
    bests, only = Bests(None), Best(0, 0, {"hr@10": 0.1})
    assert bests.whole(only, set()) == only
    with pytest.raises(UserError, match="no checkpoint could be written"):
        bests.whole(only, {0})
