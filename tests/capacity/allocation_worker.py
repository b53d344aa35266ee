"""What the tests of plans run on every rank."""

from __future__ import annotations

import torch
import torch.distributed as dist

from pad_dist.capacity.plan import plan_stage
from pad_dist.capacity.sizes import DataSize
from pad_dist.config_file import parse_config
from pad_dist.devices import Device
from pad_dist.sparse.placement import block_bytes
from pad_dist.sparse.tables import TableSpec, build_tables

ITEMS, DIM = 1000, 64
VARIANTS = (
    ("row_wise", "rowwise_adagrad", "fp32"),
    ("row_wise", "sgd", "fp16"),
    ("table_wise", "adagrad", "fp32"),
    ("column_wise", "adagrad", "fp16"),
    ("grid", "adagrad", "fp32"),
    ("planner", "rowwise_adagrad", "fp16"),
)


def allocated() -> dict[str, tuple[list[int], list[int]]]:
    """By variant: bytes of weights and of state on this rank, as planned and as they are."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    device = Device("cpu", "cpu", 2**33, 2**33, world_size)
    found = {}
    for sharding, optimizer, precision in VARIANTS:
        sparse = {"sharding": sharding, "optimizer": optimizer, "precision": precision}
        config = parse_config({"name": "x", "model": {"dim": DIM}, "sparse": sparse}, "the test")
        plan = plan_stage(config, "disentangle", DataSize(ITEMS, 10, 100, 8), device, world_size)
        planned = [block_bytes(block, config.sparse) for block in plan.blocks if block.rank == rank]
        spec = TableSpec(("id", "aligned"), ITEMS + 1, DIM, lr=0.1, weight_decay=0.0)
        tables = build_tables(spec, config.sparse, torch.device("cpu"), world_size)
        sum(rows.sum() for rows in tables.lookup(torch.arange(5)).values()).backward()
        parts = {True: 0, False: 0}
        for part in tables.parts():
            parts["." in part.name] += part.tensor.nbytes
        sizes = [sum(column) for column in zip(*planned, strict=True)]
        found[f"{sharding} {optimizer} {precision}"] = (sizes, [parts[False], parts[True]])
    return found
