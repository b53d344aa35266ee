"""What the tests of plans run on every rank."""

from __future__ import annotations

import torch
import torch.distributed as dist

from pad_dist.capacity.plan import plan_stage
from pad_dist.capacity.sizes import DataSize
from pad_dist.config.load import parse_config
from pad_dist.runtime.devices import Device
from pad_dist.sparse.build import build_tables
from pad_dist.sparse.placement import block_bytes
from pad_dist.sparse.spec import TableSpec
from tests.support.stages import stage_of

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
    by_variant = {}
    for sharding, optimizer, precision in VARIANTS:
        sparse = {"sharding": sharding, "optimizer": optimizer, "precision": precision}
        config = parse_config({"name": "x", "model": {"dim": DIM}, "sparse": sparse}, "the test")
        plan = plan_stage(stage_of(config, "disentangle"), DataSize(ITEMS, 10, 100, 8), device, world_size)
        planned = [block_bytes(block, config.sparse) for block in plan.blocks if block.rank == rank]
        spec = TableSpec(("id", "aligned"), ITEMS + 1, DIM, lr=0.1, weight_decay=0.0)
        tables = build_tables(spec, config.sparse, torch.device("cpu"), world_size)
        sum(rows.sum() for rows in tables.lookup(torch.arange(5)).values()).backward()
        real = {"weights": 0, "state": 0}
        for shard in tables.shards():
            real["state" if "." in shard.name else "weights"] += shard.tensor.nbytes
        sizes = [sum(column) for column in zip(*planned, strict=True)]
        by_variant[f"{sharding} {optimizer} {precision}"] = (sizes, [real["weights"], real["state"]])
    return by_variant
