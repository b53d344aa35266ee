"""What a rank holds of a large table: its shard, and what does not grow with it."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from benchmarks.support.many_items import write_many_items
from pad_dist.checkpoint.files import best_checkpoint, load_shards
from pad_dist.config import Config
from pad_dist.distributed.context import DistributedContext
from pad_dist.evaluation import evaluate, ranking
from pad_dist.stages.stage_runtime import build_runtime, initialise
from pad_dist.stages.steps import Stepper
from tests.support.checkpoints import save
from tests.support.ranks import run_ranks
from tests.support.stages import stage_of

pytestmark = pytest.mark.slow

ROWS, DIM = 2_000_000, 64
SHARD = ROWS // 2 * (DIM + 1) * 4
"""Bytes of a rank's weights and rowwise_adagrad state, 260 MB."""
BLOCK = 1 << 23


def growth(small: str, large: str) -> dict[str, int]:
    """Most bytes that a rank holds in each phase of a large table above what it held after those of a small one."""
    evaluate.VECTOR_BYTES = ranking.SCORE_BYTES = BLOCK
    evaluate.LOOKUP_ROWS = 1 << 13
    context = DistributedContext(dist.get_rank(), 2, torch.device("cpu"), dist.group.WORLD)  # type: ignore[arg-type]
    phases(small, context, 0)  # libraries are mapped as they are first used
    return phases(large, context, resident("VmRSS"))


def phases(url: str, context: DistributedContext, begun: int) -> dict[str, int]:
    values = {
        "name": "memory",
        "dataset": url,
        "model": {"dim": DIM},
        "training": {"batch_size": 64, "loss": {"negatives": 100}},
    }
    os.environ |= {"RANK": str(context.rank), "LOCAL_RANK": str(context.rank), "WORLD_SIZE": "2"}  # as DeepSpeed wants
    most = {}
    runtime = build_runtime(stage_of(Config.model_validate(values), "pretrain"), context)
    initialise(runtime)
    most["made"] = peak(begun)
    stepper = Stepper(runtime)
    for step, batch in enumerate(stepper.batches(1)):
        stepper.step(step, batch)
    most["trained"] = peak(begun)
    evaluate.validate(runtime, runtime.model.eval())
    most["ranked"] = peak(begun)
    save(f"{url}/saved", 1, runtime.tables.shards(), context)
    most["saved"] = peak(begun)
    load_shards(best_checkpoint(f"{url}/saved", "the test"), runtime.tables.shards())
    most["loaded"] = peak(begun)
    return most


def peak(begun: int) -> int:
    """Most bytes above `begun` since the last call."""
    most = resident("VmHWM")
    Path("/proc/self/clear_refs").write_text("5")
    return most - begun


def resident(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def test_a_rank_holds_its_shard_and_nothing_else_of_its_size(tmp_path: Path) -> None:
    small, large = (write_many_items(tmp_path / str(rows), rows - 1, users=256, validated=16) for rows in (1000, ROWS))
    for phase in run_ranks(growth, 2, small, large, timeout=120):
        assert all(SHARD * 0.9 < most < 1.15 * SHARD + (200 << 20) for most in phase.values()), phase
