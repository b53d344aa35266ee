"""Initial rows: a function of (seed, table, row) alone, so that any sharding starts alike."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

BLOCK_ROWS = 4096


def fill_normal(
    shard: Tensor, *, table: str, dim: int, first_row: int, first_column: int, std: float, seed: int
) -> None:
    """Fill one shard in place with its part of the table's N(0, std^2) values.

    The table is drawn in blocks of BLOCK_ROWS rows from a counter-based generator
    keyed by (seed, table) and the block's number, so a rank makes only the blocks
    that it holds, one at a time.

    Args:
        shard: [rows, columns] part of the table, any device and floating type.
        dim: columns of the whole table.
        first_row: table row of shard[0].
        first_column: table column of shard[:, 0].
    """
    rows, columns = shard.shape
    key = np.array([seed, zlib.crc32(table.encode())], dtype=np.uint64)
    for block in range(first_row // BLOCK_ROWS, -(-(first_row + rows) // BLOCK_ROWS)):
        generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, block]))
        values = generator.standard_normal((BLOCK_ROWS, dim), dtype=np.float32)
        start = max(first_row, block * BLOCK_ROWS)
        stop = min(first_row + rows, (block + 1) * BLOCK_ROWS)
        part = values[start - block * BLOCK_ROWS : stop - block * BLOCK_ROWS, first_column : first_column + columns]
        with torch.no_grad():
            shard[start - first_row : stop - first_row].copy_(torch.from_numpy(part)).mul_(std)
