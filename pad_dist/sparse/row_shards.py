"""Frozen per-item rows (text embeddings, frequency bins) spread over ranks by row range."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor


def row_range(rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """The rows [start, stop) that a rank holds: equal ranges, the last ones shorter.

    >>> [row_range(10, rank, 3) for rank in range(3)]
    [(0, 4), (4, 8), (8, 10)]
    """
    size = -(-rows // world_size)
    return min(rank * size, rows), min((rank + 1) * size, rows)


class RowShards:
    """Rows 0..rows-1 of a frozen table; each rank reads and holds only its own range."""

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
        wanted = torch.bincount(items // size, minlength=self.world_size)
        asked = torch.empty_like(wanted)
        dist.all_to_all_single(asked, wanted, group=self.group)
        wanted_list, asked_list = wanted.tolist(), asked.tolist()
        requests = items.new_empty(sum(asked_list))
        dist.all_to_all_single(requests, items, asked_list, wanted_list, group=self.group)
        answers = self.local[requests - self.start]
        rows = self.local.new_empty(len(items), self.local.shape[1])
        # Sent as bytes: the frozen types (half, uint8) differ in what collectives support.
        width = self.local.shape[1] * self.local.element_size()
        dist.all_to_all_single(
            rows.view(torch.uint8).view(len(items), width),
            answers.view(torch.uint8).view(len(requests), width),
            wanted_list,
            asked_list,
            group=self.group,
        )
        return rows
