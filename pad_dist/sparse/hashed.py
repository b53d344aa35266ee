"""ID tables for ids without a catalogue: rows that are given to ids as they are seen, and taken again.

On a GPU TorchRec's MPZCH module does the like inside its kernels; this one runs everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from pad_dist.config import HashedConfig
from pad_dist.sparse.id_map import IdMap
from pad_dist.sparse.initial import normal_of_ids
from pad_dist.sparse.tables import Part, Tables, row_std, rows_of_tables

_BLOCK_VALUES = 1 << 19
"""Values drawn at a time for new ids: 4 MiB in float64."""


class HashedTables(Tables):
    """Tables of 1 + `rows` rows, each with a map of its own from ids to rows.

    Each table has one because a stage takes tables over from different stages, and each with its map.
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
        """Put maps before `tables`; those of the tables in `frozen` never change.

        Raises:
            UserError: see `IdMap`.
        """
        self.spec = tables.spec
        self._tables = tables
        self._maps = {name: IdMap(settings, group) for name in self.spec.names}
        self._seed = seed
        self._std = row_std(self.spec, std)
        self._frozen = frozen
        self.followers: list[Part] = []
        """Parts elsewhere whose rows start anew with those of the tables of their names."""

    def lookup(
        self,
        items: Tensor | Mapping[str, Tensor],
        sightings: Tensor | None = None,
        before_change: Callable[[Tensor], None] = lambda rows: None,
    ) -> dict[str, Tensor]:
        """Rows of every table for ids [U] int64, 0 is padding -> {table: [U, D]}. Collective.

        An id without a row has the zero vector, which takes no gradient. With `sightings` (see `IdMap.resolve`)
        ids are admitted before: such a row starts from a vector drawn for (seed, table, id), its optimizer from 0.
        `before_change` is told all rows that are looked up, ascending, before any of them changes.
        """
        wanted, news = {}, {}
        for name, ids in rows_of_tables(items, self.spec.names).items():
            wanted[name], news[name] = self._maps[name].resolve(ids, None if name in self._frozen else sightings)
        every = torch.cat(list(wanted.values())).unique()
        before_change(every[every >= 0])
        for name, admitted in news.items():
            self._start(name, admitted)
        places = {name: (rows >= 0).nonzero().squeeze(1) for name, rows in wanted.items()}
        found = self._tables.lookup({name: wanted[name][places[name]] for name in wanted})
        return {
            name: rows.new_zeros(len(wanted[name]), rows.shape[1]).index_copy(0, places[name], rows)
            for name, rows in found.items()
        }

    def parts(self) -> list[Part]:
        return [*self._tables.parts(), *self._map_parts()]

    def weights(self) -> list[Part]:
        """The parts of the tables, and of the maps without which they mean nothing."""
        return [*self._tables.weights(), *self._map_parts()]

    def counters(self) -> dict[str, int]:
        """{"<table>.<counter>": total over ranks}, see `Counter`. Collective."""
        return {f"{name}.{key}": count for name, ids in self._maps.items() for key, count in ids.counters().items()}

    def set_lr(self, lr: float) -> None:
        self._tables.set_lr(lr)

    def set_step(self, step: int) -> None:
        self._tables.set_step(step)

    def initialise(self, *, seed: int, std: float | None) -> None:
        self._tables.initialise(seed=seed, std=std)

    def _map_parts(self) -> list[Part]:
        return [part for name, ids in self._maps.items() for part in ids.parts(name)]

    @torch.no_grad()
    def _start(self, table: str, admitted: Tensor) -> None:
        """Reset this rank's share of newly admitted rows: [A, 2] rows and ids."""
        if not len(admitted):
            return
        for part in [*self._tables.parts(), *self.followers]:
            name, _, _ = part.name.partition(".")
            if name != table or part.shape[0] != self.spec.rows:
                continue
            first, asked = part.offsets[0], admitted.to(part.tensor.device)
            rows, ids = asked[(asked[:, 0] >= first) & (asked[:, 0] < first + len(part.tensor))].unbind(1)
            if part.name != table:
                part.tensor[rows - first] = 0
                continue
            size = max(1, _BLOCK_VALUES // self.spec.dim)
            for some, drawn in zip(rows.split(size), ids.split(size), strict=True):
                values = normal_of_ids(
                    drawn.cpu().numpy(),
                    table=table,
                    first_column=part.offsets[1],
                    columns=part.tensor.shape[1],
                    std=self._std,
                    seed=self._seed,
                )
                part.tensor[some - first] = values.to(part.tensor)
