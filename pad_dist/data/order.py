"""The rows of each training step: pure functions of a few integers.

Rows are numbered through all shards in manifest order. The global batches of an
epoch depend on (seed, epoch, shard_rows, batch_size) alone. The world size only
cuts each of them, and a resume only skips some.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pad_dist.data.hashing import ROW_ORDER, SHARD_ORDER, hash_ids
from pad_dist.dataset.reader import BLOCK_ROWS


def steps_per_epoch(users: int, batch_size: int) -> int:
    """Steps of one epoch; the last may be smaller."""
    return -(-users // batch_size)


def epoch_batches(
    seed: int,
    epoch: int,
    shard_rows: Sequence[int],
    batch_size: int,
    start_step: int = 0,
    block_rows: int = BLOCK_ROWS,
) -> Iterator[NDArray[np.int64]]:
    """Global batches of one epoch from `start_step` on: every row exactly once.

    Shards are permuted and grouped into blocks of at most `block_rows` rows (a
    larger shard is one block). Rows are permuted inside their block. The rows of a
    batch are ascending, so that the contiguous slice of one rank falls into few
    shards and the rank reads few of them.

    Yields:
        [batch_size] row numbers; the last batch holds the rest.
    """
    starts = np.cumsum([0, *shard_rows])
    skip = start_step * batch_size
    rest = np.zeros(0, np.int64)
    for block in _blocks(seed, epoch, shard_rows, block_rows):
        size = sum(shard_rows[shard] for shard in block)
        if skip >= size:
            skip -= size
            continue
        rows = np.concatenate([np.arange(starts[shard], starts[shard] + shard_rows[shard]) for shard in block])
        rows = rows[np.argsort(hash_ids(seed, ROW_ORDER, epoch, rows))]
        rows = np.concatenate([rest, rows[skip:]])
        skip = 0
        full_batches = len(rows) - len(rows) % batch_size
        for start in range(0, full_batches, batch_size):
            yield np.sort(rows[start : start + batch_size])
        rest = rows[full_batches:]
    if len(rest):
        yield np.sort(rest)


def rank_slice(rows: NDArray[np.int64], rank: int, world_size: int) -> NDArray[np.int64]:
    """The contiguous share of one rank; shares differ by at most one row and may be empty."""
    return rows[len(rows) * rank // world_size : len(rows) * (rank + 1) // world_size]


def _blocks(seed: int, epoch: int, shard_rows: Sequence[int], block_rows: int) -> Iterator[list[int]]:
    block: list[int] = []
    size = 0
    for shard in np.argsort(hash_ids(seed, SHARD_ORDER, epoch, np.arange(len(shard_rows)))).tolist():
        if block and size + shard_rows[shard] > block_rows:
            yield block
            block, size = [], 0
        block.append(shard)
        size += shard_rows[shard]
    if block:
        yield block
