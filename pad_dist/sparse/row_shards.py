"""Frozen per-item rows (text embeddings, frequency bins), sharded over ranks by row range."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from pad_dist.sparse.exchange import Exchange


def row_range(rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """The rows [start, stop) that a rank holds: equal ranges, the last ones shorter.

    >>> [row_range(10, rank, 3) for rank in range(3)]
    [(0, 4), (4, 8), (8, 10)]
    """
    size = -(-rows // world_size)
    return min(rank * size, rows), min((rank + 1) * size, rows)


def has_rows(rows: int, world_size: int) -> bool:
    """Whether each rank has a row of a table that is cut by rows.

    >>> has_rows(5, 3), has_rows(5, 4)
    (True, False)
    """
    start, stop = row_range(rows, world_size - 1, world_size)
    return start < stop


class RowShards:
    """Rows 0..rows-1 of a frozen table; each rank reads and holds only its range."""

    def __init__(
        self,
        read: Callable[[int, int], NDArray[np.generic]],
        rows: int,
        device: torch.device,
        group: dist.ProcessGroup | None,
    ) -> None:
        """`read(start, stop)` gives [stop - start, width] for a range of rows."""
        self.group = group
        self.rank = dist.get_rank(group) if group else 0
        self.world_size = dist.get_world_size(group) if group else 1
        self.rows = rows
        self.start, self.stop = row_range(rows, self.rank, self.world_size)
        self.local = torch.from_numpy(np.ascontiguousarray(read(self.start, self.stop))).to(device)

    def lookup(self, items: Tensor) -> Tensor:
        """items [U] ascending item_index -> [U, width]. Collective."""
        if self.group is None:
            return self.local[items]
        size = max(-(-self.rows // self.world_size), 1)
        # Ascending items are already grouped by their owner's rank.
        exchange = Exchange(torch.bincount(items // size, minlength=self.world_size), self.group)
        answers = self.local[exchange.to_owners(items) - self.start]
        # Sent as bytes, because collectives do not support all types of frozen rows (half, uint8) alike.
        width = self.local.shape[1] * self.local.element_size()
        rows = exchange.to_senders(answers.view(torch.uint8).view(len(answers), width))
        return rows.view(self.local.dtype).view(len(items), self.local.shape[1])
