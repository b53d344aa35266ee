"""Trainable ID tables behind one small interface, whatever engine holds them.

A table has one row per item_index, 0..N (row 0 is padding). Looking rows up is a
collective call. The gradient that reaches the looked-up rows in backward, divided by
world_size, updates the table at once (fused optimizer).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pad_dist.sparse.initial import fill_normal

ADAGRAD_EPS = 1e-8


@dataclass(frozen=True)
class TableSpec:
    """Shape and optimizer of the tables of one stage."""

    names: tuple[str, ...]
    rows: int
    dim: int
    lr: float
    weight_decay: float
    """Used by adamw alone; the fused optimizers do not decay."""


@dataclass(frozen=True)
class TableShard:
    """A rank's shard of one array, in place: tensor[i, j] is array[offsets[0] + i, offsets[1] + j] of `shape`.

    Arrays have one or two dimensions and any type; the shards of all ranks together are the full array.
    """

    name: str
    tensor: Tensor
    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    changes: Literal["rows", "all", "none"] = "rows"
    """What a step changes: only the rows of its items; more than these, so that a background save must copy the shard
    at once; or nothing."""


class Tables(ABC):
    """ID tables of one stage on one rank."""

    spec: TableSpec

    @abstractmethod
    def lookup(self, items: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rows of every table: [U] unique row numbers, or those of each table -> {table: [U, D]}. Collective."""

    @abstractmethod
    def shards(self) -> list[TableShard]:
        """The shards of this rank: weights ("id") and, once it exists, optimizer state ("id.momentum1")."""

    def weights(self) -> list[TableShard]:
        """The shards of the tables themselves."""
        return [shard for shard in self.shards() if shard.name in self.spec.names]

    @abstractmethod
    def set_lr(self, lr: float) -> None:
        """Change the learning rate of all tables."""

    def set_step(self, step: int) -> None:  # noqa: B027 (most optimizers need none)
        """Pass the number of the next step, from 0, to optimizers that correct their moments by it."""

    def counters(self) -> dict[str, int]:
        """Counts of events in training, equal on all ranks. Collective."""
        return {}

    def initialise(self, *, seed: int, std: float | None) -> None:
        """Fill every shard; `std` as in `row_std`."""
        std = row_std(self.spec, std)
        for shard in self.weights():
            fill_normal(
                shard.tensor,
                table=shard.name,
                dim=self.spec.dim,
                first_row=shard.offsets[0],
                first_column=shard.offsets[1],
                std=std,
                seed=seed,
            )


class NoTables(Tables):
    """The tables of a stage without ID tables."""

    def __init__(self, spec: TableSpec) -> None:
        self.spec = spec

    def lookup(self, items: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {}

    def shards(self) -> list[TableShard]:
        return []

    def set_lr(self, lr: float) -> None:
        return


def rows_of_tables(items: Tensor | Mapping[str, Tensor], names: Iterable[str]) -> Mapping[str, Tensor]:
    """The argument of `lookup`, by table."""
    return items if isinstance(items, Mapping) else {name: items for name in names}


def row_std(spec: TableSpec, std: float | None) -> float:
    """Standard deviation of a new row; None is Xavier-normal's, sqrt(2 / (rows + dim))."""
    return std if std is not None else math.sqrt(2 / (spec.rows + spec.dim))
