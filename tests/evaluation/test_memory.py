"""What a rank holds of a large table: its shard, and what does not grow with it."""

import os
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.support.many_items import write_many_items
from pad_dist.config import Config
from pad_dist.evaluation import evaluate, ranking
from pad_dist.stages.system import build_system, initialise
from pad_dist.stages.train import Trainer
from pad_dist.training.checkpoint import best_checkpoint, load_parts
from pad_dist.training.ranks import Ranks
from tests.support.checkpoints import save
from tests.support.ranks import run_ranks

ROWS, DIM = 2_000_000, 64
SHARD = ROWS // 2 * (DIM + 1) * 4
"""Bytes of a rank's weights and rowwise_adagrad state, 260 MB."""
BLOCK = 1 << 23


def growth(small: str, large: str) -> dict[str, int]:
    """Most bytes that a rank holds in each phase of a large table above what it held after those of a small one."""
    evaluate.VECTOR_BYTES = ranking.SCORE_BYTES = BLOCK
    evaluate.LOOKUP_ROWS = 1 << 13
    ranks = Ranks(dist.get_rank(), 2, torch.device("cpu"), dist.group.WORLD)
    phases(small, ranks, 0)  # libraries are mapped as they are first used
    return phases(large, ranks, resident("VmRSS"))


def phases(url: str, ranks: Ranks, begun: int) -> dict[str, int]:
    values = {
        "name": "memory",
        "dataset": url,
        "model": {"dim": DIM},
        "training": {"batch_size": 64, "loss": {"negatives": 100}},
    }
    os.environ |= {"RANK": str(ranks.rank), "LOCAL_RANK": str(ranks.rank), "WORLD_SIZE": "2"}  # as DeepSpeed wants
    found = {}
    system = build_system(Config.model_validate(values), "pretrain", ranks)
    initialise(system)
    found["made"] = peak(begun)
    trainer = Trainer(system)
    for step, batch in enumerate(trainer.batches(1)):
        trainer.step(step, batch)
    found["trained"] = peak(begun)
    evaluate.validate(system, system.pad.eval())
    found["ranked"] = peak(begun)
    save(f"{url}/saved", 1, system.tables.parts(), ranks)
    found["saved"] = peak(begun)
    load_parts(best_checkpoint(f"{url}/saved", "the test"), system.tables.parts())
    found["loaded"] = peak(begun)
    return found


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
    for found in run_ranks(growth, 2, small, large, timeout=120):
        assert all(SHARD * 0.9 < most < 1.15 * SHARD + (200 << 20) for most in found.values()), found
