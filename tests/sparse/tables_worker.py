"""What the table tests run on every rank."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from pad_dist.checkpoint.files import best_checkpoint, load_shards
from pad_dist.config import SparseConfig
from pad_dist.distributed.context import DistributedContext
from pad_dist.sparse.build import build_tables
from pad_dist.sparse.row_shards import RowShards
from pad_dist.sparse.spec import Tables, TableSpec
from tests.support.checkpoints import save

ROWS, DIM, STEPS = 501, 256, 4  # wide enough to be cut by columns
CPU = torch.device("cpu")
OPTIMIZERS = ("rowwise_adagrad", "adagrad", "sgd")
SHARDINGS = ("row_wise", "table_wise", "column_wise", "grid", "planner")
PRECISIONS = ("fp32", "fp16")


def largest_differences() -> dict[str, float]:
    """Largest difference between TorchRec and torch tables after training, by optimizer, sharding and precision."""
    return {f"{c.optimizer} {c.sharding} {c.precision}": _difference(c) for c in configs()}


def configs() -> list[SparseConfig]:
    """Everything that a CPU can do; rows that are cut have no row-wise state."""
    return [
        SparseConfig(optimizer=optimizer, sharding=sharding, precision=precision)
        for optimizer in OPTIMIZERS
        for sharding in SHARDINGS
        for precision in PRECISIONS
        if optimizer != "rowwise_adagrad" or sharding not in ("column_wise", "grid")
    ]


def shards_of_trained() -> dict[str, tuple[list[tuple[Any, ...]], dict[str, Any]]]:
    """Of each sharding and optimizer this rank's shards (name, offsets, shape, values) and the torch backend's."""
    found = {}
    for optimizer in ("rowwise_adagrad", "adagrad"):
        for sharding in SHARDINGS[:4]:
            if optimizer != "rowwise_adagrad" or sharding not in ("column_wise", "grid"):
                tables = _tables(SparseConfig(optimizer=optimizer, sharding=sharding))
                _train(tables)
                whole = build_tables(_spec(), SparseConfig(optimizer=optimizer, backend="torch"), CPU, 1)
                whole.initialise(seed=3, std=0.02)
                _train_whole(whole)
                shards = [(p.name, p.offsets, p.shape, p.tensor.numpy()) for p in tables.shards()]
                found[f"{optimizer} {sharding}"] = (shards, {p.name: p.tensor.numpy() for p in whole.shards()})
    return found


def halves_are_rounded() -> bool:
    """Whether fp16 tables of both backends, under every sharding, are the fp32 ones rounded, and looked up as fp32."""
    agree = True
    items = torch.arange(ROWS)
    for config in [c for c in configs() if c.precision == "fp16" and c.optimizer == "adagrad"]:
        for values in [config.model_dump(), {**config.model_dump(), "backend": "torch", "sharding": "row_wise"}]:
            halves, singles = (
                build_tables(_spec(), SparseConfig(**values | {"precision": precision}), CPU, _world_size(values))
                for precision in ("fp16", "fp32")
            )
            for tables in (halves, singles):
                tables.initialise(seed=3, std=0.02)
            agree &= all(shard.tensor.dtype == torch.float16 for shard in halves.weights())
            with torch.no_grad():
                pairs = zip(halves.lookup(items).values(), singles.lookup(items).values(), strict=True)
                agree &= all(torch.equal(half, single.half().float()) for half, single in pairs)
    return agree


def _world_size(values: dict[str, Any]) -> int:
    return 1 if values["backend"] == "torch" else dist.get_world_size()


def corrected_by_step() -> int:
    """What an optimizer that counts takes for the number of the step after seven, having seen a validation too."""
    tables = _tables(SparseConfig())
    with torch.no_grad():
        tables.lookup(torch.arange(5))
    tables.set_step(7)
    tables.lookup(torch.arange(5))
    (count,) = {int(kernel.iter_cpu) for kernel in tables._kernels()}  # type: ignore[attr-defined]
    return count


def frozen_rows_agree() -> bool:
    """Whether lookups of sharded frozen rows equal the whole array's, also with nothing asked by one rank."""
    table = np.random.default_rng(0).standard_normal((ROWS, 5)).astype(np.float16)
    shards = RowShards(lambda start, stop: table[start:stop], ROWS, CPU, _group())
    agree = len(shards.local) < ROWS or dist.get_world_size() == 1
    for size in (0, 1, 900):
        items = _items(seed=size, count=0 if dist.get_rank() else size)
        agree &= torch.equal(shards.lookup(items), torch.from_numpy(table)[items])
    return agree


def save_trained(directory: str) -> None:
    """Train two tables and save them from these ranks; rank 0 leaves the whole tables too."""
    tables = _tables(SparseConfig())
    _train(tables)
    save(directory, 3, tables.shards(), _context())
    rows = tables.lookup(torch.arange(ROWS))
    if dist.get_rank() == 0:
        torch.save({name: row.detach() for name, row in rows.items()}, Path(directory) / "expected.pt")


def loads_what_was_saved(directory: str) -> bool:
    """Whether a checkpoint of another world size gives the same tables, also under another name."""
    expected = torch.load(Path(directory) / "expected.pt", weights_only=True)
    path = best_checkpoint(directory, "the test")
    tables = _tables(SparseConfig())
    load_shards(path, [replace(shard, name="id") for shard in tables.weights()])
    with torch.no_grad():
        rows = tables.lookup(torch.arange(ROWS))
    return all(torch.equal(row, expected["id"]) for row in rows.values())


def _difference(config: SparseConfig) -> float:
    sharded = _tables(config)
    whole = build_tables(_spec(), config.model_copy(update={"backend": "torch"}), CPU, 1)
    whole.initialise(seed=3, std=0.02)
    _train(sharded)
    _train_whole(whole)
    with torch.no_grad():
        pairs = zip(sharded.lookup(torch.arange(ROWS)).values(), whole.lookup(torch.arange(ROWS)).values(), strict=True)
        return max((a - b).abs().max().item() for a, b in pairs)


def _train(tables: Tables) -> None:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    for step in range(STEPS):
        tables.set_lr(_lr(step))
        items, gradient = _wanted(step, rank)
        rows = tables.lookup(items)
        (sum((row * gradient).sum() for row in rows.values()) * world_size).backward()


def _train_whole(tables: Tables) -> None:
    for step in range(STEPS):
        tables.set_lr(_lr(step))
        total = torch.zeros(ROWS, DIM)
        asked = [_wanted(step, rank) for rank in range(dist.get_world_size())]
        for items, gradient in asked:
            total[items] += gradient
        items = torch.unique(torch.cat([items for items, _ in asked]))
        rows = tables.lookup(items)
        sum((row * total[items]).sum() for row in rows.values()).backward()


def _wanted(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Items and gradients of a rank; in one step the last rank asks for nothing."""
    items = _items(seed=10 * step + rank, count=0 if step == 1 and rank == 1 else 200)
    return items, torch.randn(len(items), DIM, generator=torch.Generator().manual_seed(step + 100 * rank))


def _items(seed: int, count: int) -> torch.Tensor:
    return torch.unique(torch.randint(0, ROWS, (count,), generator=torch.Generator().manual_seed(seed)))


def _lr(step: int) -> float:
    return 0.1 if step < 2 else 0.03


def _tables(config: SparseConfig) -> Tables:
    tables = build_tables(_spec(), config, CPU, dist.get_world_size())
    tables.initialise(seed=3, std=0.02)
    return tables


def _spec() -> TableSpec:
    return TableSpec(("id", "aligned"), ROWS, DIM, lr=0.1, weight_decay=0.0)


def _context() -> DistributedContext:
    return DistributedContext(dist.get_rank(), dist.get_world_size(), CPU, _group())


def _group() -> dist.ProcessGroup:
    assert dist.group.WORLD is not None
    return dist.group.WORLD
