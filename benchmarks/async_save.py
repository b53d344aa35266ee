"""How long training is delayed by a save in the background, against a save that it waits for.

    python -m benchmarks.async_save --dir DIR [--ranks 1 2] [--gib 1.0] [--repeat 7]

Each rank holds a table of `--gib` GiB (weights and row-wise Adagrad state) and takes real pretrain
steps (SASRec, sampled softmax, 128 sequences in all) on random ids. In each repetition the same
ranks take a save that training waits for, then steps during which a save runs in the background
from its beginning to its end, then as many steps without one. The delay is the difference of the
last two stretches. Medians are printed. Exit status 1 when a delay is above the limit.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.support.many_items import write_many_items
from pad_dist.checkpoint.saver import Saver
from pad_dist.config import CheckpointConfig
from pad_dist.config.load import parse_config
from pad_dist.distributed.context import DistributedContext
from pad_dist.sparse.spec import Tables
from pad_dist.stages.methods import find_stage, resolve_stages
from pad_dist.stages.stage_runtime import build_runtime
from pad_dist.stages.steps import Stepper
from tests.support.ranks import run_ranks

DIM, BATCH, STEPS, LIMIT = 64, 128, 400, 0.15
EXPECTED = """expected: a save is a copy, a checksum and a direct write, about 0.25 s of a core for a GiB. With a core
to spare training is delayed by next to nothing. Two ranks on two cores have none: each gives up about that much"""


def main() -> None:
    """Print what is expected and a table of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="for the checkpoints; deleted at the end")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--gib", type=float, default=1.0, help="tables and state of a rank")
    parser.add_argument("--repeat", type=int, default=7)
    args = parser.parse_args()
    print(f"{EXPECTED}\n")
    print("| ranks | GiB per rank | step, ms | waiting save, s | background save, s | steps in it | delay, s |")
    print("|---|---|---|---|---|---|---|")
    over = False
    for world_size in args.ranks:
        folder = str(args.dir / str(world_size))
        rows = int(args.gib * 2**30 * world_size / (4 * DIM + 4))
        dataset = write_many_items(args.dir / f"dataset-{world_size}", rows - 1, BATCH * STEPS, validated=0)
        step, waiting, background, steps, delay = run_ranks(
            measured, world_size, folder, dataset, args.repeat, timeout=1200
        )[0]
        share = delay / waiting
        over |= share > LIMIT
        print(
            f"| {world_size} | {args.gib:g} | {1000 * step:.1f} | {waiting:.2f} | {background:.2f} | {steps:.0f} | "
            f"{delay:.3f} = {100 * share:.1f} % |",
            flush=True,
        )
    shutil.rmtree(args.dir)
    if over:
        sys.exit(f"a delay is above {100 * LIMIT:.0f} % of the waiting save")


def measured(folder: str, dataset: str, repeat: int) -> tuple[float, ...]:
    """Medians: seconds of a step, a waiting save, a background save; steps in that; seconds of delay."""
    assert dist.group.WORLD is not None
    context = DistributedContext(dist.get_rank(), dist.get_world_size(), torch.device("cpu"), dist.group.WORLD)
    os.environ |= {"RANK": str(context.rank), "LOCAL_RANK": str(context.rank), "WORLD_SIZE": str(context.world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # DeepSpeed asks for them
    values = {
        "name": "async-save",
        "dataset": dataset,
        "model": {"dim": DIM, "max_length": 20},
        "training": {"batch_size": BATCH, "loss": {"negatives": 2048}},
    }
    stages = resolve_stages(parse_config(values, "the benchmark"))
    runtime = build_runtime(find_stage(stages, "pretrain"), context)
    tables = runtime.tables
    for shard in tables.weights():
        shard.tensor.normal_(0, 0.02)
    waiting_saver = Saver(folder, CheckpointConfig(asynchronous=False), context, print)
    saver = Saver(folder, CheckpointConfig(), context, print)
    stepper = Stepper(runtime, saver.keep)
    batches = enumerate(stepper.batches(1))
    repetitions = []
    for number in range(repeat + 1):
        started = time.monotonic()
        _save(waiting_saver, tables, 2 * number)
        waiting = time.monotonic() - started
        started = time.monotonic()
        _save(saver, tables, 2 * number + 1)
        steps = 0
        while saver.in_flight:
            stepper.step(*next(batches))
            steps += 1
        background = time.monotonic() - started
        context.barrier()
        started = time.monotonic()
        for _ in range(steps):
            stepper.step(*next(batches))
        alone = time.monotonic() - started
        repetitions.append((alone / steps, waiting, background, steps, background - alone))
    # The first repetition warms up.
    return tuple(statistics.median(values) for values in zip(*repetitions[1:], strict=True))


def _save(saver: Saver, tables: Tables, step: int) -> None:
    saver.save(step, shards=tables.shards(), dense={}, optimizer={}, best=step, meta={})


if __name__ == "__main__":
    main()
