"""Time of a training step against the rows of its table, with as many random ids in each.

    python -m benchmarks.flat_cost --dir DIR [--rows 100000 1000000 10000000 50000000]

Pretrain stages of tables of every size stand in one process on one rank and take turns at single
steps, so that a busy machine slows all of them. A step is that of training: the next batch of a
dataset whose histories are drawn uniformly over all items, setting the learning rates, look-up,
SASRec, sampled softmax, backward with the fused optimizer, AdamW. The median must stay within 15 %
of the smallest table's. Exit status 1 when one does not. Takes 260 bytes of memory for each row.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pad_dist.runtime.threads import limit_threads

limit_threads()

import numpy as np

from benchmarks.support.many_items import write_many_items
from pad_dist.config import Config
from pad_dist.config.load import parse_config
from pad_dist.distributed.context import DistributedContext, launched
from pad_dist.stages.methods import find_stage, resolve_stages
from pad_dist.stages.stage_runtime import build_runtime, initialise
from pad_dist.stages.steps import Stepper

BATCH, WARM_UP = 128, 5


def main() -> None:
    """Print what is expected and one line per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="for datasets; deleted at the end")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000, 50_000_000])
    parser.add_argument("--steps", type=int, default=60, help="timed steps of each size")
    args = parser.parse_args()
    print("expected: every median within 15 % of the smallest table's; a few % more for rows that no cache holds\n")
    configs = [config_of(args.dir / str(rows), rows, args.steps + WARM_UP) for rows in args.rows]
    with launched(configs[0].training) as context:
        steps = [timed_steps(config, context) for config in configs]
        taken = np.array([[step() for step in steps] for _ in range(args.steps + WARM_UP)])[WARM_UP:]
    shutil.rmtree(args.dir)
    seconds, ids = taken[:, :, 0], taken[:, :, 1].mean(axis=0)
    median = np.median(seconds, axis=0)
    print("| rows | unique ids a step | median step, ms | quartiles | ratio |\n|---|---|---|---|---|")
    for place, rows in enumerate(args.rows):
        low, high = np.percentile(seconds[:, place], [25, 75]) * 1000
        times = f"{median[place] * 1000:.1f} | {low:.1f} to {high:.1f} | {median[place] / median[0]:.3f}"
        print(f"| {rows:,} | {ids[place]:,.0f} | {times} |")
    if np.abs(median / median[0] - 1).max() > 0.15:
        sys.exit(1)


def config_of(folder: Path, rows: int, steps: int) -> Config:
    """A pretrain stage on a new dataset of `rows` - 1 items (row 0 is padding) and `steps` batches."""
    values = {
        "name": "flat-cost",
        "dataset": write_many_items(folder, rows - 1, BATCH * steps, validated=0),
        "model": {"dim": 64, "max_length": 20},
        "sparse": {"memory_gib": 1000},
        "training": {"batch_size": BATCH, "loss": {"kind": "sampled_softmax", "negatives": 2048}},
    }
    return parse_config(values, "the benchmark")


def timed_steps(config: Config, context: DistributedContext) -> Callable[[], tuple[float, int]]:
    """Seconds and unique ids of one training step after another."""
    runtime = build_runtime(find_stage(resolve_stages(config), "pretrain"), context)
    initialise(runtime)
    stepper = Stepper(runtime)
    batches = enumerate(stepper.batches(1))

    def step() -> tuple[float, int]:
        started = time.perf_counter()
        number, batch = next(batches)
        stepper.set_lr_scale(1.0)  # as in every step of a warm-up
        stepper.step(number, batch).item()
        return time.perf_counter() - started, len(batch.items)

    return step


if __name__ == "__main__":
    main()
