"""What the tests of hashed tables run on every rank, and the same by the definition."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from pad_dist.config import HashedConfig, SparseConfig
from pad_dist.data.order import rank_slice
from pad_dist.sparse.build import build_tables
from pad_dist.sparse.hashed import HashedTables
from pad_dist.sparse.initial import normal_of_ids
from pad_dist.sparse.spec import ADAGRAD_EPS, TableSpec
from tests.sparse.id_map_worker import Oracle, stream

STEPS, DIM, LR, SEED, STD = 15, 256, 0.1, 5, 0.5  # wide enough to be cut by columns
TABLES = ("id", "aligned")
VARIANTS = ("torchrec row_wise rowwise_adagrad", "torchrec column_wise adagrad", "torch row_wise rowwise_adagrad")
SETTINGS = HashedConfig(rows=1024 * 2, buckets=1024, admit_after=2, candidates=3)
Asked = list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]]
Vectors = dict[str, dict[int, NDArray[np.float32]]]


def build(variant: str, frozen: tuple[str, ...] = ()) -> HashedTables:
    """Empty tables of this rank."""
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    backend, sharding, optimizer = variant.split()
    config = SparseConfig.model_validate({"backend": backend, "sharding": sharding, "optimizer": optimizer})
    spec = TableSpec(TABLES, SETTINGS.rows + 1, DIM, lr=LR, weight_decay=0.0)
    tables = build_tables(spec, config, torch.device("cpu"), world_size)
    group = dist.group.WORLD if world_size > 1 else None
    hashed = HashedTables(tables, SETTINGS, seed=SEED, std=STD, group=group, frozen=frozen)
    hashed.initialise(seed=SEED, std=STD)
    return hashed


def trained() -> dict[str, Vectors]:
    """Of each variant, what the tables give for every id after training."""
    found = {}
    rank, world_size = dist.get_rank(), dist.get_world_size()
    for variant in VARIANTS if world_size == 1 else VARIANTS[:2]:
        tables = build(variant)
        for step in range(STEPS):
            ids, seen, gradient = asked(step, world_size)[rank]
            rows = tables.lookup(torch.from_numpy(ids), torch.from_numpy(seen))
            loss = sum((row * torch.from_numpy(gradient)).sum() * (1 + n) for n, row in enumerate(rows.values()))
            (loss * world_size).backward()
        found[variant] = vectors(tables)
    return found


def vectors(tables: HashedTables) -> Vectors:
    """{table: {id: its vector}}. Collective."""
    every = np.unique(np.concatenate([ids for step in range(STEPS) for ids, _, _ in asked(step, 1)]))
    with torch.no_grad():
        found = tables.lookup(torch.from_numpy(every))
    return {name: dict(zip(every.tolist(), rows.numpy(), strict=True)) for name, rows in found.items()}


def asked(step: int, world_size: int) -> Asked:
    """Ids of a global batch that each rank asks for, how often it saw them, and gradients of their rows."""
    drawn, real = stream(0)[step]
    parts = []
    for rank in range(world_size):
        mine = rank_slice(np.arange(len(drawn)), rank, world_size)
        ids, places = np.unique(np.append(drawn[mine], 0), return_inverse=True)
        seen = np.bincount(places, np.append(real[mine], 0)).astype(np.int64)
        gradient = np.random.default_rng((step, rank)).standard_normal((len(ids), DIM)).astype(np.float32)
        gradient[ids == 0] = 0
        parts.append((ids, seen, gradient))
    return parts


def expected(variant: str, world_size: int) -> Vectors:
    """The vectors of all ids with a row: from the draw of each, by the optimizer's rule."""
    oracle = Oracle(SETTINGS)
    found: Vectors = {name: {} for name in TABLES}
    sums: Vectors = {name: {} for name in TABLES}
    again = 0
    for step in range(STEPS):
        for _, key in oracle.batch(step, *stream(0)[step]):
            for name in TABLES:
                again += key in found[name]
                found[name][key] = fresh(name, key)
                sums[name][key] = np.zeros(DIM if variant.endswith(" adagrad") else 1, np.float32)
        total: dict[int, NDArray[np.float32]] = {}
        for ids, _, gradient in asked(step, world_size):
            for key, own in zip(ids.tolist(), gradient, strict=True):
                total[key] = total.get(key, 0) + own
        for key, gradient in total.items():
            for number, name in enumerate(TABLES):
                if oracle.row(key) > 0:
                    own = gradient * (1 + number)
                    sums[name][key] += own**2 if variant.endswith(" adagrad") else (own**2).mean()
                    found[name][key] -= LR * own / (np.sqrt(sums[name][key]) + ADAGRAD_EPS)
    assert again  # some ids have lost their rows and got others
    return {name: {key: row for key, row in rows.items() if oracle.row(key) > 0} for name, rows in found.items()}


def fresh(table: str, key: int) -> NDArray[np.float32]:
    """What an id's row starts from."""
    drawn = normal_of_ids(np.array([key]), table=table, first_column=0, columns=DIM, std=STD, seed=SEED)
    return drawn[0].numpy()
