"""The blocks of tables on each rank: in closed form where possible, else from TorchRec's planner."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pad_dist.config import SparseConfig
from pad_dist.errors import UserError
from pad_dist.sparse.spec import TableSpec

DEVICE_SHARE = {"fused": 1.0, "fused_uvm_caching": 0.2, "fused_uvm": 0.0}
"""TorchRec's kernels, and the share of a block's rows that each keeps on the device (fbgemm's default cache size). With
a share below 1 the host's memory holds all rows and their optimizer state."""


STATES = {"sgd": 0, "rowwise_adagrad": 1, "adagrad": 1, "adam": 2, "partial_rowwise_adam": 2, "adamw": 2}
"""Number of state arrays that each optimizer keeps for a table."""


class PlacementError(UserError):
    """TorchRec's planner finds no placement within the memory of the devices."""


@dataclass(frozen=True)
class Block:
    """Rows and columns of a table on one rank, under a kernel of DEVICE_SHARE."""

    table: str
    rank: int
    first_row: int
    rows: int
    first_column: int
    columns: int
    kernel: str = "fused"


def stacked(spec: TableSpec, config: SparseConfig) -> TableSpec:
    """The tables as TorchRec holds them: for a grid the column parts of a table are stacked as rows.

    Cut by rows over the ranks, such a table is the grid: rank r holds a range of rows of one part (or the end of
    one and the beginning of the next). TorchRec's grid works for pooled look-ups alone.
    """
    parts = config.grid_columns if config.sharding == "grid" else 1
    return replace(spec, rows=spec.rows * parts, dim=spec.dim // parts)


def unstacked(first: int, stop: int, rows: int, dim: int) -> Iterator[tuple[slice, int, int]]:
    """Split rows first..stop-1 of a stacked table by part, `dim` wide: (local rows, first row, first column).

    >>> list(unstacked(8, 15, rows=10, dim=4))
    [(slice(0, 2, None), 8, 0), (slice(2, 7, None), 0, 4)]
    """
    for part in range(first // rows, -(-stop // rows)):
        low, high = max(first, part * rows), min(stop, (part + 1) * rows)
        yield slice(low - first, high - first), low - part * rows, part * dim


def in_closed_form(config: SparseConfig) -> bool:
    """Whether TorchRec's planner has no choice."""
    return config.backend == "torch" or (config.sharding in ("row_wise", "grid") and not config.uvm)


def block_bytes(block: Block, config: SparseConfig) -> tuple[int, int]:
    """Bytes of a block's weights and of its optimizer state, in whatever memory."""
    weights = block.rows * block.columns * (4 if config.precision == "fp32" else 2)
    per_row = {
        "sgd": 0,
        "rowwise_adagrad": 1,
        "adagrad": block.columns,
        "adam": 2 * block.columns,
        "partial_rowwise_adam": block.columns + 1,
        # The gradient of the full table, besides two moments.
        "adamw": 3 * block.columns,
    }[config.optimizer]
    return weights, 4 * block.rows * per_row
