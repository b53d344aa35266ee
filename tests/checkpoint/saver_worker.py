"""What the tests of saving in the background run on every rank."""

from __future__ import annotations

import resource
import threading
import time
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from pad_dist.checkpoint import saver as saving
from pad_dist.checkpoint import shard_files
from pad_dist.checkpoint.saver import Saver
from pad_dist.config import CheckpointConfig, SparseConfig
from pad_dist.distributed.context import DistributedContext
from pad_dist.errors import UserError
from pad_dist.sparse.build import build_tables
from pad_dist.sparse.spec import Tables, TableSpec

ROWS, DIM = 901, 256  # wide enough to be cut by columns
CPU = torch.device("cpu")


class SlowLock:
    """A lock that the saving thread waits before: rows change between its copy of a block and what it lays over."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if threading.current_thread().name.startswith("save"):
            time.sleep(0.002)
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def both_ways(folder: str, variants: list[dict[str, Any]]) -> list[int]:
    """Of each variant the same state saved with training waiting and in the background.

    Returns:
        steps that were trained while the save was in flight.
    """
    shard_files.BLOCK_BYTES = 32 << 10
    saving.threading = SimpleNamespace(**vars(threading) | {"Lock": SlowLock})
    return [_both_ways(f"{folder}/{number}", SparseConfig(**variant)) for number, variant in enumerate(variants)]


def _both_ways(folder: str, config: SparseConfig) -> int:
    tables, context = _tables(config), _context()
    for step in range(3):
        _train(tables, step)
    with Saver(f"{folder}/waiting", CheckpointConfig(asynchronous=False), context, print) as saver:
        _save(saver, tables, 3)
    before = {shard.name: shard.tensor.clone() for shard in tables.shards()}
    during = 0
    with Saver(f"{folder}/background", CheckpointConfig(), context, print) as saver:
        _save(saver, tables, 3)
        while saver.in_flight:
            _train(tables, 3 + during, saver)
            during += 1
    changed = sum(
        (shard.tensor != before[shard.name]).sum().item() for shard in tables.shards() if shard.name in before
    )
    assert changed > 500 * DIM / dist.get_world_size(), "training changed next to nothing"
    return during


def fails(folder: str, failing_rank: int) -> dict[str, Any]:
    """One rank has no space for its file in the second save; what the others see by `checkpoint.on_error`."""
    tables, context = _tables(SparseConfig()), _context()
    said: list[str] = []
    for on_error in ("continue", "stop"):
        config = CheckpointConfig(on_error=on_error)
        with Saver(f"{folder}/{on_error}", config, context, said.append) as saver:
            _save(saver, tables, 1)
            saver.finish()
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            if context.rank == failing_rank:
                resource.setrlimit(resource.RLIMIT_FSIZE, (200 << 10, limits[1]))
            try:
                _save(saver, tables, 2)
                saver.finish()
                assert saver.lost == {2}
            except UserError as error:
                said.append(str(error))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            if on_error == "continue":
                _save(saver, tables, 3)
    return {"said": said}


def _save(saver: Saver, tables: Tables, step: int) -> None:
    dense = {"weight": torch.arange(5.0)}
    saver.save(step, shards=tables.shards(), dense=dense, optimizer={}, best=step, meta={})


def _train(tables: Tables, step: int, saver: Saver | None = None) -> None:
    draw = torch.Generator().manual_seed(10 * step + dist.get_rank())
    items = torch.randint(0, ROWS, (200,), generator=draw).unique()
    loss = sum((rows * torch.randn(len(items), DIM, generator=draw)).sum() for rows in tables.lookup(items).values())
    if saver is not None:
        saver.keep(items)
    loss.backward()


def _tables(config: SparseConfig) -> Tables:
    spec = TableSpec(("id", "aligned"), ROWS, DIM, lr=0.1, weight_decay=0.01)
    tables = build_tables(spec, config, CPU, dist.get_world_size())
    tables.initialise(seed=3, std=0.02)
    return tables


def _context() -> DistributedContext:
    assert dist.group.WORLD is not None
    return DistributedContext(dist.get_rank(), dist.get_world_size(), CPU, dist.group.WORLD)
