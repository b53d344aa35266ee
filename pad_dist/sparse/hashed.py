"""ID tables for ids without a catalogue: ids gain rows as they are seen, and lose them to others.

On a GPU TorchRec's MPZCH module does something similar inside its kernels; this one runs everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from pad_dist.config import HashedConfig
from pad_dist.sparse.id_map import IdMap
from pad_dist.sparse.initial import normal_of_ids
from pad_dist.sparse.spec import Tables, TableShard, row_std, rows_of_tables

_BLOCK_VALUES = 1 << 19
"""Values drawn at a time for new ids: 4 MiB in float64."""


class HashedTables(Tables):
    """Tables of 1 + `rows` rows, each with a separate map from ids to rows.

    The maps are separate because a stage takes over tables from different stages, each with its map.
    """

    def __init__(
        self,
        tables: Tables,
        settings: HashedConfig,
        *,
        seed: int,
        std: float | None,
        group: dist.ProcessGroup | None,
        frozen: Collection[str] = (),
    ) -> None:
        """Put maps in front of `tables`; the maps of the tables in `frozen` never change.

        Raises:
            UserError: see `IdMap`.
        """
        self.spec = tables.spec
        self._tables = tables
        self._maps = {name: IdMap(settings, group) for name in self.spec.names}
        self._seed = seed
        self._std = row_std(self.spec, std)
        self._frozen = frozen
        self.followers: list[TableShard] = []
        """Shards outside the tables; a row of them is reset with the row of the table of the same name."""

    def lookup(
        self,
        items: Tensor | Mapping[str, Tensor],
        sightings: Tensor | None = None,
        before_change: Callable[[Tensor], None] = lambda rows: None,
    ) -> dict[str, Tensor]:
        """Rows of every table for ids [U] int64, 0 is padding -> {table: [U, D]}. Collective.

        An id without a row has the zero vector, which takes no gradient. With `sightings` (see `IdMap.resolve`)
        ids are first admitted: a new row starts from a vector drawn for (seed, table, id), its optimizer state from 0.
        `before_change` is called with all rows that are looked up, ascending, before any of them changes.
        """
        wanted, admitted = {}, {}
        for name, ids in rows_of_tables(items, self.spec.names).items():
            wanted[name], admitted[name] = self._maps[name].resolve(ids, None if name in self._frozen else sightings)
        all_rows = torch.cat(list(wanted.values())).unique()
        before_change(all_rows[all_rows >= 0])
        for name, rows_and_ids in admitted.items():
            self._start(name, rows_and_ids)
        places = {name: (rows >= 0).nonzero().squeeze(1) for name, rows in wanted.items()}
        looked_up = self._tables.lookup({name: wanted[name][places[name]] for name in wanted})
        return {
            name: rows.new_zeros(len(wanted[name]), rows.shape[1]).index_copy(0, places[name], rows)
            for name, rows in looked_up.items()
        }

    def shards(self) -> list[TableShard]:
        return [*self._tables.shards(), *self._map_shards()]

    def weights(self) -> list[TableShard]:
        """The shards of the tables and of their maps, without which the rows have no meaning."""
        return [*self._tables.weights(), *self._map_shards()]

    def counters(self) -> dict[str, int]:
        """{"<table>.<counter>": total over ranks}, see `Counter`. Collective."""
        return {f"{name}.{key}": count for name, ids in self._maps.items() for key, count in ids.counters().items()}

    def set_lr(self, lr: float) -> None:
        self._tables.set_lr(lr)

    def set_step(self, step: int) -> None:
        self._tables.set_step(step)

    def initialise(self, *, seed: int, std: float | None) -> None:
        self._tables.initialise(seed=seed, std=std)

    def _map_shards(self) -> list[TableShard]:
        return [shard for name, ids in self._maps.items() for shard in ids.shards(name)]

    @torch.no_grad()
    def _start(self, table: str, admitted: Tensor) -> None:
        """Reset this rank's share of newly admitted rows; `admitted` is [A, 2], rows and ids."""
        if not len(admitted):
            return
        for shard in [*self._tables.shards(), *self.followers]:
            name, _, _ = shard.name.partition(".")
            if name != table or shard.shape[0] != self.spec.rows:
                continue
            first, pairs = shard.offsets[0], admitted.to(shard.tensor.device)
            rows, ids = pairs[(pairs[:, 0] >= first) & (pairs[:, 0] < first + len(shard.tensor))].unbind(1)
            if shard.name != table:
                shard.tensor[rows - first] = 0
                continue
            size = max(1, _BLOCK_VALUES // self.spec.dim)
            for some_rows, some_ids in zip(rows.split(size), ids.split(size), strict=True):
                values = normal_of_ids(
                    some_ids.cpu().numpy(),
                    table=table,
                    first_column=shard.offsets[1],
                    columns=shard.tensor.shape[1],
                    std=self._std,
                    seed=self._seed,
                )
                shard.tensor[some_rows - first] = values.to(shard.tensor)
