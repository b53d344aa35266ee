"""Initial rows: a function of (seed, table, row) alone, so that any sharding starts with the same values."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pad_dist.data.hashing import ID_VECTOR, hash_ids

BLOCK_ROWS = 4096
BLOCK_VALUES = 1 << 24
"""64 MiB of fp32: wider tables are drawn in blocks of fewer rows."""


def block_rows(dim: int) -> int:
    """Rows that are drawn at a time."""
    return max(1, min(BLOCK_ROWS, BLOCK_VALUES // dim))


def fill_normal(
    shard: Tensor, *, table: str, dim: int, first_row: int, first_column: int, std: float, seed: int
) -> None:
    """Fill one shard in place with its part of the table's N(0, std^2) values.

    A counter-based generator, keyed by (seed, table) and the block's number, draws the
    table in blocks of `block_rows(dim)` rows. A rank makes only the blocks that it
    holds, one at a time. Rows in half precision are the rounded rows in single
    precision.

    Args:
        shard: [rows, columns] part of the table, any device and floating type.
        dim: columns of the full table.
        first_row: table row of shard[0].
        first_column: table column of shard[:, 0].
    """
    rows, columns = shard.shape
    size = block_rows(dim)
    key = np.array([seed, zlib.crc32(table.encode())], dtype=np.uint64)
    values = np.empty((size, dim), np.float32)
    for block in range(first_row // size, -(-(first_row + rows) // size)):
        generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, block]))
        generator.standard_normal(dtype=np.float32, out=values)
        values *= np.float32(std)
        start = max(first_row, block * size)
        stop = min(first_row + rows, (block + 1) * size)
        part = values[start - block * size : stop - block * size, first_column : first_column + columns]
        with torch.no_grad():
            shard[start - first_row : stop - first_row].copy_(torch.from_numpy(part))


def normal_of_ids(
    ids: NDArray[np.int64], *, table: str, first_column: int, columns: int, std: float, seed: int
) -> Tensor:
    """[n] ids -> [n, columns] of N(0, std^2): a function of (seed, table, id, column), wherever the row is.

    Unlike `fill_normal` it draws only the given ids: their rows are scattered.
    """
    first_pair, stop_pair = first_column // 2, -(-(first_column + columns) // 2)
    key = hash_ids(seed, ID_VECTOR, zlib.crc32(table.encode()), ids)
    bits = hash_ids(key[:, None], np.arange(first_pair, stop_pair))
    # Box and Muller: two uniform numbers, one above 0, are two normal ones.
    radius = np.sqrt(-2 * np.log(((bits >> np.uint64(32)) + 1.0) * 2.0**-32))
    angle = (bits & np.uint64(0xFFFFFFFF)) * (2 * np.pi * 2.0**-32)
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2).reshape(len(ids), 2 * bits.shape[1])
    start = first_column - 2 * first_pair
    return torch.from_numpy((pairs[:, start : start + columns] * std).astype(np.float32))
