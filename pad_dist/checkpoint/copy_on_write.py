"""Copy-on-write: old values of rows that change during a save, until they are written."""

from __future__ import annotations

import torch
from torch import Tensor

from pad_dist.sparse.spec import TableShard

_ROOM_BYTES = 8 << 20
_ALIGNED = 64


class CopyOnWrite:
    """Old values of the rows of one shard that have changed since the save began.

    Later saves use its memory again: fresh memory costs more than the copy into it.
    """

    def __init__(self, shard: TableShard) -> None:
        self._tensor = shard.tensor
        self._copied = torch.zeros(len(shard.tensor), dtype=torch.bool, device=shard.tensor.device)
        self._rooms: list[Tensor] = []
        self._used = 0
        self._old: list[tuple[Tensor, Tensor]] = []

    def clear(self) -> None:
        """Drop them: another save begins."""
        for rows, _ in self._old:
            self._copied[rows] = False
        self._old, self._rooms, self._used = [], self._rooms[-1:], 0

    def copy(self, rows: Tensor) -> None:
        """Copy rows of the shard, ascending, that are about to change; those copied before stay as they are."""
        rows = rows.to(self._copied.device)
        rows = rows[~self._copied[rows]]
        self._copied[rows] = True
        self._old.append((rows, torch.index_select(self._tensor, 0, rows, out=self._room(len(rows)))))

    def lay_over(self, start: int, stop: int, out: Tensor) -> None:
        """Put the old values of rows [start, stop) into `out`, a copy of these."""
        for rows, values in self._old:
            first, last = torch.searchsorted(rows, torch.tensor([start, stop], device=rows.device)).tolist()
            out[(rows[first:last] - start).to(out.device)] = values[first:last].to(out)

    def _room(self, count: int) -> Tensor:
        """Memory for so many rows."""
        row = self._tensor[:0]
        size = count * row.element_size() * row.shape[1:].numel()
        if not self._rooms or self._used + size > len(self._rooms[-1]):
            last = len(self._rooms[-1]) if self._rooms else 0
            self._rooms.append(torch.empty(max(size, 2 * last, _ROOM_BYTES), dtype=torch.uint8, device=row.device))
            self._used = 0
        room = self._rooms[-1][self._used : self._used + size]
        self._used += -(-size // _ALIGNED) * _ALIGNED
        return room.view(row.dtype).view(count, *row.shape[1:])
