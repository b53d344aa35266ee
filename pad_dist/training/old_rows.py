"""Rows as they were at a save, for as long as they are not written."""

from __future__ import annotations

import torch
from torch import Tensor

from pad_dist.sparse.tables import Part

_ROOM_BYTES = 8 << 20
_ALIGNED = 64


class OldRows:
    """Old values of the rows of one part that have changed since the save.

    Its memory serves later saves too: fresh memory costs more than the copy into it.
    """

    def __init__(self, part: Part) -> None:
        self._tensor = part.tensor
        self._kept = torch.zeros(len(part.tensor), dtype=torch.bool, device=part.tensor.device)
        self._rooms: list[Tensor] = []
        self._used = 0
        self._old: list[tuple[Tensor, Tensor]] = []

    def clear(self) -> None:
        """Forget them: another save begins."""
        for rows, _ in self._old:
            self._kept[rows] = False
        self._old, self._rooms, self._used = [], self._rooms[-1:], 0

    def keep(self, rows: Tensor) -> None:
        """Put aside rows of the part, ascending, that are about to change; those put aside before stay as they are."""
        rows = rows.to(self._kept.device)
        rows = rows[~self._kept[rows]]
        self._kept[rows] = True
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
