"""Trainable ID tables behind one small interface, whatever engine holds them.

A table has one row per item_index, 0..N (row 0 is padding). Looking rows up is a
collective call; the gradient that reaches the looked-up rows in backward updates
the table there and then (fused optimizer), divided by world_size.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pad_dist.config import SparseConfig
from pad_dist.errors import UserError
from pad_dist.sparse.initial import fill_normal
from pad_dist.sparse.row_shards import row_range

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
class Part:
    """A rank's part of one array, in place: tensor[i, j] is array[offsets[0] + i, offsets[1] + j] of `shape`.

    Arrays have one or two dimensions and any type; all parts of all ranks make the whole array.
    """

    name: str
    tensor: Tensor
    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    changes: Literal["rows", "all", "none"] = "rows"
    """What a step changes: rows of its items alone; more than these, so that a save in the background needs a copy at
    once; or nothing."""


class Tables(ABC):
    """ID tables of one stage on one rank."""

    spec: TableSpec

    @abstractmethod
    def lookup(self, items: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rows of every table: [U] unique row numbers, or those of each table -> {table: [U, D]}. Collective."""

    @abstractmethod
    def parts(self) -> list[Part]:
        """What this rank holds: weights ("id") and, once there is some, optimizer state ("id.momentum1")."""

    def weights(self) -> list[Part]:
        """The parts of the tables themselves."""
        return [part for part in self.parts() if part.name in self.spec.names]

    @abstractmethod
    def set_lr(self, lr: float) -> None:
        """Change the learning rate of all tables."""

    def set_step(self, step: int) -> None:  # noqa: B027 (most optimizers need none)
        """Tell the number of the step to come, from 0, to optimizers that correct their moments by it."""

    def counters(self) -> dict[str, int]:
        """What training counts, equal on all ranks. Collective."""
        return {}

    def initialise(self, *, seed: int, std: float | None) -> None:
        """Fill every part; `std` as in `row_std`."""
        std = row_std(self.spec, std)
        for part in self.weights():
            fill_normal(
                part.tensor,
                table=part.name,
                dim=self.spec.dim,
                first_row=part.offsets[0],
                first_column=part.offsets[1],
                std=std,
                seed=seed,
            )


class NoTables(Tables):
    """Of a stage without ID tables."""

    def __init__(self, spec: TableSpec) -> None:
        self.spec = spec

    def lookup(self, items: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {}

    def parts(self) -> list[Part]:
        return []

    def set_lr(self, lr: float) -> None:
        return


def rows_of_tables(items: Tensor | Mapping[str, Tensor], names: Iterable[str]) -> Mapping[str, Tensor]:
    """What `lookup` is asked for, by table."""
    return items if isinstance(items, Mapping) else {name: items for name in names}


def row_std(spec: TableSpec, std: float | None) -> float:
    """Standard deviation of a new row; None is Xavier-normal's, sqrt(2 / (rows + dim))."""
    return std if std is not None else math.sqrt(2 / (spec.rows + spec.dim))


def check_kernels(config: SparseConfig, kind: str) -> None:
    """Refuse what fbgemm has no kernel for on a device of that kind ("cpu" or "cuda").

    Raises:
        UserError: naming what does work there.
    """
    if kind == "cpu" and config.optimizer in ("adam", "partial_rowwise_adam"):
        raise UserError(
            f"sparse.optimizer={config.optimizer} has no CPU kernel in fbgemm: use rowwise_adagrad, adagrad or sgd "
            "on a CPU, or training.device=cuda"
        )
    if kind == "cpu" and config.uvm:
        raise UserError("sparse.uvm places rows beside a GPU's memory, and this run is on a CPU: set sparse.uvm=false")


def check_rows(spec: TableSpec, config: SparseConfig, world_size: int) -> None:
    """Refuse to cut tables by rows over ranks of which one would have none: the kernels know no empty table.

    Raises:
        UserError: with the number of ranks that would do.
    """
    rows = spec.rows * (config.grid_columns if config.sharding == "grid" else 1)
    if config.sharding in ("row_wise", "grid") and not has_rows(rows, world_size):
        most = next(count for count in range(world_size, 0, -1) if has_rows(rows, count))
        raise UserError(
            f"tables of {spec.rows} rows, cut by rows, leave one of {world_size} ranks without any: use at most {most} "
            "ranks, or sparse.sharding=table_wise"
        )


def has_rows(rows: int, world_size: int) -> bool:
    """Whether each rank has a row of a table that is cut by rows.

    >>> has_rows(5, 3), has_rows(5, 4)
    (True, False)
    """
    start, stop = row_range(rows, world_size - 1, world_size)
    return start < stop


def build_tables(spec: TableSpec, config: SparseConfig, device: torch.device, world_size: int) -> Tables:
    """Make the tables of a stage on this rank, uninitialised.

    Raises:
        UserError: there is no kernel or no placement for them, a rank would have no row, or the torch backend is asked
            for on several ranks.
    """
    if not spec.names:
        return NoTables(spec)
    check_kernels(config, device.type)
    check_rows(spec, config, world_size)
    if config.backend == "torch":
        from pad_dist.sparse.torch_tables import TorchTables

        if world_size > 1:
            raise UserError(
                f"sparse.backend=torch holds whole tables in one process, but world_size is {world_size}: "
                "use one rank, or sparse.backend=torchrec"
            )
        return TorchTables(spec, config, device)
    # Imported here so that the torch backend works where fbgemm does not exist.
    from pad_dist.sparse.torchrec_tables import TorchRecTables

    return TorchRecTables(spec, config, device)
