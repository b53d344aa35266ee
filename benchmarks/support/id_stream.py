"""What the benchmark of hashed tables runs on its ranks, and what a stream of distinct ids must leave."""

from __future__ import annotations

import resource
import time
import zlib
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from pad_dist.checkpoint.files import load_shards, place
from pad_dist.checkpoint.saver import Saver
from pad_dist.config import CheckpointConfig, HashedConfig, SparseConfig
from pad_dist.data.hashing import hash_ids
from pad_dist.data.order import rank_slice
from pad_dist.distributed.context import DistributedContext
from pad_dist.sparse.build import build_tables
from pad_dist.sparse.hashed import HashedTables
from pad_dist.sparse.spec import TableSpec

BATCH, ROWS, BUCKETS, DIM = 100_000, 1 << 20, 1 << 14, 16  # a batch never fills a bucket


@dataclass(frozen=True)
class Found:
    """What one rank saw.

    Attributes:
        seconds: of the stream, look-ups and backward included.
        half, peak: most bytes resident beyond those before the tables were made: after half of the stream, after
            all of it.
        live: [ids] whether each has a row at the end.
    """

    seconds: float
    half: int
    peak: int
    counters: dict[str, int]
    live: NDArray[np.bool_]


def ids_of(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Different numbers, different ids."""
    return hash_ids(1, numbers).view(np.int64)


def settings_of(admit_after: int) -> HashedConfig:
    return HashedConfig(rows=ROWS, buckets=BUCKETS, admit_after=admit_after)


def tables_of(settings: HashedConfig) -> HashedTables:
    """Empty tables over these ranks."""
    spec = TableSpec(("id",), settings.rows + 1, DIM, lr=0.1, weight_decay=0.0)
    world_size = dist.get_world_size()
    tables = build_tables(spec, SparseConfig(), torch.device("cpu"), world_size)
    hashed = HashedTables(tables, settings, seed=7, std=0.02, group=dist.group.WORLD if world_size > 1 else None)
    hashed.initialise(seed=7, std=0.02)
    return hashed


def follow(ids: int, admit_after: int) -> Found:
    """Train on ids that each come once, then look all of them up."""
    # Libraries are mapped as they are first used: that is no memory of the tables.
    _train(tables_of(HashedConfig(rows=BUCKETS, buckets=BUCKETS)), _share(0, 1000))
    before = _peak()
    tables = tables_of(settings_of(admit_after))
    half, started = 0, time.monotonic()
    for first in range(0, ids, BATCH):
        _train(tables, _share(first, ids))
        if first + BATCH <= max(ids // 2, BATCH):
            half = _peak() - before
    seconds = time.monotonic() - started
    peak = _peak() - before
    live = [_vectors(tables, _share(first, ids)).any(1).numpy() for first in range(0, ids, BATCH)]
    return Found(seconds, half, peak, tables.counters(), np.concatenate(live))


def saved(directory: str, ids: int) -> tuple[int, dict[str, int]]:
    """Train on ids that each come once and save; checksum of the vectors of all ids, and the counters."""
    tables = tables_of(settings_of(1))
    for first in range(0, ids, BATCH):
        _train(tables, _share(first, ids))
    with Saver(directory, CheckpointConfig(), _context(), print) as saver:
        saver.save(1, shards=tables.shards(), dense={}, optimizer={}, best=1, meta={})
    return _checksum(tables, ids), tables.counters()


def loaded(directory: str, ids: int) -> tuple[int, dict[str, int]]:
    """The same of tables that are read on these ranks."""
    tables = tables_of(settings_of(1))
    load_shards(place(directory, 1), tables.shards())
    return _checksum(tables, ids), tables.counters()


def expected(ids: int) -> tuple[NDArray[np.bool_], dict[str, int]]:
    """Who lives and what is counted if each id is admitted when it is first seen, from a count of the buckets alone.

    The last `slots` ids of a bucket in the order of the stream, within a batch in that of their numbers, have rows.
    """
    numbers = ids_of(np.arange(ids))
    bucket = (hash_ids(numbers) >> np.uint64(64 - BUCKETS.bit_length() + 1)).astype(np.int64)
    order = np.lexsort((numbers, np.arange(ids) // BATCH, bucket))
    size = np.bincount(bucket, minlength=BUCKETS)
    after = np.repeat(np.cumsum(size), size) - np.arange(ids)  # how many of its bucket come from it on
    live = np.zeros(ids, bool)
    live[order[after <= ROWS // BUCKETS]] = True
    lost = ids - int(np.minimum(size, ROWS // BUCKETS).sum())
    return live, {"id.admitted": ids, "id.evicted": lost, "id.collisions": lost, "id.unadmitted": 0}


def _train(tables: HashedTables, ids: torch.Tensor) -> None:
    rows = tables.lookup(ids, torch.ones_like(ids))["id"]
    rows.backward(rows.detach() + 1)


@torch.no_grad()
def _vectors(tables: HashedTables, ids: torch.Tensor) -> torch.Tensor:
    return tables.lookup(ids)["id"]


def _checksum(tables: HashedTables, ids: int) -> int:
    total = 0
    for first in range(0, ids, BATCH):
        numbers = np.arange(first, min(first + BATCH, ids))
        total = zlib.crc32(_vectors(tables, torch.from_numpy(ids_of(numbers))).numpy().tobytes(), total)
    return total


def _context() -> DistributedContext:
    assert dist.group.WORLD is not None
    return DistributedContext(dist.get_rank(), dist.get_world_size(), torch.device("cpu"), dist.group.WORLD)


def _share(first: int, ids: int) -> torch.Tensor:
    numbers = np.arange(first, min(first + BATCH, ids))
    return torch.from_numpy(ids_of(rank_slice(numbers, dist.get_rank(), dist.get_world_size())))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
