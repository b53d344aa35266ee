"""Rows of items that an older table lacks: the mean of the rows of items with similar texts.

So a new item can be scored before it is trained: its row is near those of items with
similar texts. The search is exact and sharded. Each rank compares the new items with
its range of the known ones, and sends only its best matches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from pad_dist.sparse.row_shards import RowShards, row_range
from pad_dist.sparse.spec import Tables

Lookup = Callable[[Tensor], Tensor]
"""Text vectors of ascending items [U] -> [U, text_dim]; collective."""

NEIGHBOURS = 10
_QUERY_ROWS = 256
_KNOWN_VALUES = 1 << 22
"""Float64 values of known rows, or of cosines with them, in memory at once: 32 MiB."""
_STEPS = 10**9
"""Cosines are compared in steps of 1e-9, far above rounding in float64: equal texts tie on any number of ranks."""
_LOW_BITS = 32
_NONE = torch.iinfo(torch.int64).min


@torch.no_grad()
def fill_new_rows(tables: Tables, text: Lookup, bins: RowShards, known: int) -> None:
    """Fill rows known + 1 onwards of every table from its rows 1..known. Collective.

    Row i becomes the mean of the rows of the NEIGHBOURS items in use (bin above 0)
    among 1..known whose text vectors have the largest cosine with that of i. Among
    ties the lower item_index wins. The result is the same at any world size.
    """
    shards = tables.weights()
    for first in range(known + 1, tables.spec.rows, _QUERY_ROWS):
        stop = min(first + _QUERY_ROWS, tables.spec.rows)
        near = nearest_known(torch.arange(first, stop, device=bins.local.device), text, bins, known)
        items, places = near.unique(return_inverse=True)
        is_item = (near > 0).unsqueeze(-1)
        for table, rows in tables.lookup(items).items():
            mean = (rows[places] * is_item).sum(1) / is_item.sum(1).clamp(min=1)
            for shard in shards:
                row, column = shard.offsets
                low, high = max(first, row), min(stop, row + len(shard.tensor))
                if shard.name == table and low < high:
                    columns = slice(column, column + shard.tensor.shape[1])
                    shard.tensor[low - row : high - row] = mean[low - first : high - first, columns]


@torch.no_grad()
def nearest_known(new: Tensor, text: Lookup, bins: RowShards, known: int) -> Tensor:
    """[n] item_index, the same on every rank -> [n, NEIGHBOURS] of 1..known, nearest first; 0: no further one.

    Collective.
    """
    start, stop = row_range(known + 1, bins.rank, bins.world_size)
    _, longest = row_range(known + 1, 0, bins.world_size)
    queries = F.normalize(text(new).double(), dim=1)
    best = torch.full((len(new), NEIGHBOURS), _NONE, device=new.device)
    # Look-ups are collective: every rank makes as many as the one with the most rows.
    size = max(1, _KNOWN_VALUES // max(queries.shape))
    for offset in range(0, longest, size):
        low, high = min(start + offset, stop), min(start + offset + size, stop)
        items = torch.arange(low, high, device=new.device)
        rows = F.normalize(text(items).double(), dim=1)
        cosines = (queries @ rows.T * _STEPS).round().long()
        # One integer orders by cosine, then by item: no two are equal.
        keys = (cosines << _LOW_BITS) - items
        keys[:, bins.lookup(items).squeeze(-1) == 0] = _NONE
        best = torch.cat([best, keys], dim=1).topk(NEIGHBOURS).values
    if bins.group is not None:
        shards = [torch.empty_like(best) for _ in range(bins.world_size)]
        dist.all_gather(shards, best, group=bins.group)
        best = torch.cat(shards, dim=1).topk(NEIGHBOURS).values
    return torch.remainder(-best, 1 << _LOW_BITS)  # of _NONE: 0
