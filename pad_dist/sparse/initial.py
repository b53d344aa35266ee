"""Initial rows: a function of (seed, table, row) alone, so that any sharding starts alike."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

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

    The table is drawn in blocks of `block_rows(dim)` rows from a counter-based
    generator keyed by (seed, table) and the block's number, so a rank makes only the
    blocks that it holds, one at a time. Rows in half precision are those in single
    precision, rounded.

    Args:
        shard: [rows, columns] part of the table, any device and floating type.
        dim: columns of the whole table.
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
