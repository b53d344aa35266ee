"""The tables of a stage, made by the backend of the config, and their placement on ranks."""

from __future__ import annotations

import torch

from pad_dist.config import SparseConfig
from pad_dist.errors import UserError
from pad_dist.runtime.devices import Device
from pad_dist.sparse.placement import Block, in_closed_form, stacked, unstacked
from pad_dist.sparse.row_shards import has_rows, row_range
from pad_dist.sparse.spec import NoTables, Tables, TableSpec
from pad_dist.sparse.torch_tables import TorchTables


def check_kernels(config: SparseConfig, kind: str) -> None:
    """Refuse what fbgemm has no kernel for on a device of that kind ("cpu" or "cuda").

    Raises:
        UserError: it names what works on that device.
    """
    if kind == "cpu" and config.optimizer in ("adam", "partial_rowwise_adam"):
        raise UserError(
            f"sparse.optimizer={config.optimizer} has no CPU kernel in fbgemm: use rowwise_adagrad, adagrad or sgd "
            "on a CPU, or training.device=cuda"
        )
    if kind == "cpu" and config.uvm:
        raise UserError("sparse.uvm places rows beside a GPU's memory, and this run is on a CPU: set sparse.uvm=false")


def check_rows(spec: TableSpec, config: SparseConfig, world_size: int) -> None:
    """Refuse to cut tables by rows if a rank would have none: the kernels cannot handle an empty table.

    Raises:
        UserError: it names the most ranks that work.
    """
    rows = spec.rows * (config.grid_columns if config.sharding == "grid" else 1)
    if config.sharding in ("row_wise", "grid") and not has_rows(rows, world_size):
        most = next(count for count in range(world_size, 0, -1) if has_rows(rows, count))
        raise UserError(
            f"tables of {spec.rows} rows, cut by rows, leave one of {world_size} ranks without any: use at most {most} "
            "ranks, or sparse.sharding=table_wise"
        )


def build_tables(spec: TableSpec, config: SparseConfig, device: torch.device, world_size: int) -> Tables:
    """Make the tables of a stage on this rank, uninitialised.

    Raises:
        UserError: no kernel or no placement exists for them, a rank would have no row, or the config asks for the
            torch backend on several ranks.
    """
    if not spec.names:
        return NoTables(spec)
    check_kernels(config, device.type)
    check_rows(spec, config, world_size)
    if config.backend == "torch":
        if world_size > 1:
            raise UserError(
                f"sparse.backend=torch holds whole tables in one process, but world_size is {world_size}: "
                "use one rank, or sparse.backend=torchrec"
            )
        return TorchTables(spec, config, device)
    # Imported here so that the torch backend works where fbgemm does not exist.
    from pad_dist.sparse.torchrec_tables import TorchRecTables

    return TorchRecTables(spec, config, device)


def place(
    spec: TableSpec, config: SparseConfig, device: Device, world_size: int, ranks: int | None = None
) -> list[Block]:
    """The blocks of all ranks, or (in closed form) of the first `ranks` ranks, which hold the most. Allocates nothing.

    Raises:
        PlacementError: the planner finds no placement.
    """
    if config.backend == "torch" or not spec.names:
        return [Block(name, 0, 0, spec.rows, 0, spec.dim) for name in spec.names]
    if in_closed_form(config):
        stacked_spec = stacked(spec, config)
        return [
            Block(name, rank, row, local.stop - local.start, column, stacked_spec.dim)
            for name in spec.names
            for rank in range(ranks or world_size)
            for local, row, column in unstacked(
                *row_range(stacked_spec.rows, rank, world_size), spec.rows, stacked_spec.dim
            )
        ]
    # Imported here: a plan in closed form needs no fbgemm.
    from pad_dist.sparse.planning import planned

    return planned(spec, config, device, world_size)
