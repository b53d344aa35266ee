"""Makes large tables and prints: variant, bytes by which the process's high-water mark grew, bytes of all shards."""

import gc
import re
from pathlib import Path

import torch
import torch.distributed as dist

from pad_dist.config import SparseConfig
from pad_dist.sparse.build import build_tables
from pad_dist.sparse.spec import TableSpec

VARIANTS = (("row_wise", "rowwise_adagrad", "fp32"), ("grid", "adagrad", "fp16"))
CPU = torch.device("cpu")


def train(config: SparseConfig, rows: int) -> int:
    """Build, fill and step tables; returns the bytes that they hold."""
    tables = build_tables(TableSpec(("id", "aligned"), rows, 64, lr=0.1, weight_decay=0.0), config, CPU, 1)
    tables.initialise(seed=1, std=0.1)
    sum(rows.sum() for rows in tables.lookup(torch.arange(min(rows, 1000))).values()).backward()
    return sum(shard.tensor.nbytes for shard in tables.shards())


def peak() -> int:
    """High-water mark since it was last reset."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


if __name__ == "__main__":
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    for sharding, optimizer, precision in VARIANTS:
        config = SparseConfig.model_validate({"sharding": sharding, "optimizer": optimizer, "precision": precision})
        train(config, 5000)  # what the engines need at first use
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = peak()
        size = train(config, 300_000)
        print(sharding, optimizer, precision, peak() - before, size)
    dist.destroy_process_group()
