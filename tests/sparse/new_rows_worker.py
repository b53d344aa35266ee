"""What the tests of grown tables run on every rank."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from pad_dist.checkpoint.files import best_checkpoint, load_first_rows
from pad_dist.config import SparseConfig
from pad_dist.distributed.context import DistributedContext
from pad_dist.sparse import new_rows
from pad_dist.sparse.build import build_tables
from pad_dist.sparse.new_rows import NEIGHBOURS, fill_new_rows
from pad_dist.sparse.row_shards import RowShards
from pad_dist.sparse.spec import TableSpec
from tests.support import checkpoints

KNOWN, ROWS, DIM, TEXT_DIM = 700, 1001, 256, 6  # more new items than one block of queries
CPU = torch.device("cpu")


def texts() -> NDArray[np.float16]:
    """Few distinct vectors, of any length, so that most neighbours tie; row 0 zeros."""
    rng = np.random.default_rng(0)
    kinds = rng.standard_normal((90, TEXT_DIM))
    rows = kinds[rng.integers(0, len(kinds), ROWS)].astype(np.float16)
    rows[0] = 0
    return rows


def bins(in_use: int = KNOWN) -> NDArray[np.uint8]:
    """A fifth of the items is out of use, and every known one after `in_use`; 0 is padding."""
    values = np.where(np.random.default_rng(1).random(ROWS) < 0.2, 0, 4).astype(np.uint8)
    values[[0, *range(in_use + 1, KNOWN + 1)]] = 0
    return values


def save(directory: str, variant: str) -> None:
    """Save two tables of the known items."""
    tables = build_tables(_spec(KNOWN + 1), _config(variant), CPU, dist.get_world_size())
    tables.initialise(seed=3, std=0.5)
    checkpoints.save(directory, 1, tables.shards(), _context())


def grown(directory: str, variant: str, in_use: int = KNOWN) -> dict[str, NDArray[np.float32]]:
    """Whole tables of all items: known rows from the checkpoint, new ones from their neighbours."""
    new_rows._KNOWN_VALUES = 128 * 256  # several blocks on any rank
    world_size = dist.get_world_size()
    group = _context().group if world_size > 1 else None
    tables = build_tables(_spec(ROWS), _config(variant), CPU, world_size)
    for shard in tables.weights():
        shard.tensor.fill_(torch.nan)
    load_first_rows(best_checkpoint(directory, "the test"), tables.weights(), KNOWN + 1)
    text = RowShards(lambda start, stop: texts()[start:stop].astype(np.float32), ROWS, CPU, group)
    out_of_use = RowShards(lambda start, stop: bins(in_use)[start:stop, None], ROWS, CPU, group)
    fill_new_rows(tables, text.lookup, out_of_use, KNOWN)
    with torch.no_grad():
        return {name: rows.numpy() for name, rows in tables.lookup(torch.arange(ROWS)).items()}


def expected(in_use: int = KNOWN) -> dict[str, NDArray[np.float32]]:
    """The same by the definition, on the whole."""
    whole = build_tables(_spec(KNOWN + 1), SparseConfig(backend="torch"), CPU, 1)
    whole.initialise(seed=3, std=0.5)
    vectors = texts().astype(np.float64)
    vectors[1:] /= np.linalg.norm(vectors[1:], axis=1, keepdims=True)
    cosines = np.round(vectors[KNOWN + 1 :] @ vectors[: KNOWN + 1].T, 8)
    usable = np.flatnonzero(bins(in_use)[: KNOWN + 1])
    found = {}
    for shard in whole.weights():
        known = shard.tensor
        near = [usable[np.lexsort((usable, -row[usable]))[:NEIGHBOURS]] for row in cosines]
        found[shard.name] = np.concatenate([known.numpy(), [known.numpy()[items].mean(0) for items in near]])
    return found


def _spec(rows: int) -> TableSpec:
    return TableSpec(("id", "aligned"), rows, DIM, lr=0.1, weight_decay=0.0)


def _config(variant: str) -> SparseConfig:
    backend, _, sharding = variant.partition(" ")
    return SparseConfig.model_validate({"backend": backend, "sharding": sharding or "row_wise", "optimizer": "adagrad"})


def _context() -> DistributedContext:
    assert dist.group.WORLD is not None
    return DistributedContext(dist.get_rank(), dist.get_world_size(), CPU, dist.group.WORLD)
