"""What the tests of the id map run on every rank, and the map by its definition, one id at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from pad_dist.config import HashedConfig
from pad_dist.data.hashing import hash_ids
from pad_dist.data.order import rank_slice
from pad_dist.sparse.id_map import IdMap

BUCKETS, STEPS = 1024, 40
CROWDED = (0, 1, 400, 700, 1023)
"""The buckets of nearly all ids of a stream: on different ranks."""
SETTINGS = [
    HashedConfig(rows=BUCKETS * slots, buckets=BUCKETS, admit_after=admit_after, evict=evict, candidates=candidates)
    for slots, admit_after, evict, candidates in [
        (3, 1, "lru", 2),
        (3, 1, "lfu", 1),
        (4, 3, "lru", 3),
        (4, 3, "lfu", 2),
        (1, 2, "lru", 1),
    ]
]


def bucket(number: int) -> int:
    return int(hash_ids(number)) >> 54


def stream(seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Global batches: [n] ids, with repeats and zeros, and [n] whether each is real (else a negative)."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(-(2**63), 2**63 - 1, 60_000)
    buckets = (hash_ids(ids) >> np.uint64(54)).astype(int)
    pool = np.concatenate([[0, 2**63 - 1, -(2**63)], ids[:20], ids[np.isin(buckets, CROWDED)][:150]])
    weights = 1 / np.sqrt(1 + np.arange(len(pool)))
    batches = []
    for step in range(STEPS):
        size = 0 if step == 7 else int(rng.integers(1, 150))
        drawn = pool[rng.choice(len(pool), size, p=weights / weights.sum()) - int(rng.integers(0, 9))]
        batches.append((drawn, (rng.random(size) < 0.6) & (drawn != 0)))
    return batches


def followed(seed: int) -> list[dict[str, Any]]:
    """For each setting: rows that this rank was given in each step, ids admitted, lookups at the end, counters."""
    group = dist.group.WORLD if dist.get_world_size() > 1 else None
    found = []
    for settings in SETTINGS:
        ids_of = IdMap(settings, group)
        rows, admitted = [], []
        for drawn, real in stream(seed):
            mine = rank_slice(np.arange(len(drawn)), dist.get_rank(), dist.get_world_size())
            ids, places = np.unique(drawn[mine], return_inverse=True)
            seen = np.bincount(places, real[mine], minlength=len(ids)).astype(np.int64)
            given, news = ids_of.resolve(torch.from_numpy(ids), torch.from_numpy(seen))
            rows.append(dict(zip(ids.tolist(), given.tolist(), strict=True)))
            admitted.append(sorted(map(tuple, news.tolist())))
        every = np.unique(np.concatenate([drawn for drawn, _ in stream(seed)]))
        before = {shard.name: shard.tensor.clone() for shard in ids_of.shards("id")}
        last, none = ids_of.resolve(torch.from_numpy(every))
        assert not len(none) and all(torch.equal(before[shard.name], shard.tensor) for shard in ids_of.shards("id"))
        found.append({"rows": rows, "admitted": admitted, "last": last.tolist(), "counters": ids_of.counters()})
    return found


@dataclass
class Bucket:
    slots: list[int]
    last: dict[int, int] = field(default_factory=dict)
    sightings: dict[int, int] = field(default_factory=dict)
    candidates: dict[int, int] = field(default_factory=dict)


class Oracle:
    """The definition: dictionaries, one id after the other."""

    def __init__(self, settings: HashedConfig) -> None:
        self.settings = settings
        self.size = settings.rows // settings.buckets
        self.buckets = {number: Bucket([0] * self.size) for number in range(settings.buckets)}
        self.counters = {"admitted": 0, "evicted": 0, "collisions": 0, "unadmitted": 0}

    def row(self, number: int) -> int:
        if number == 0:
            return 0
        slots = self.buckets[bucket(number)].slots
        return 1 + bucket(number) * self.size + slots.index(number) if number in slots else -1

    def batch(self, step: int, drawn: np.ndarray, real: np.ndarray) -> list[tuple[int, int]]:
        seen = {number: int(real[drawn == number].sum()) for number in sorted(set(drawn.tolist()) - {0})}
        admitted = []
        for number, count in seen.items():
            home = self.buckets[bucket(number)]
            if count and number in home.slots:
                home.last[number] = step
                home.sightings[number] += count
        for number, count in seen.items():
            home = self.buckets[bucket(number)]
            if count and number not in home.slots and self._new(step, number, count, home):
                admitted.append((self.row(number), number))
        self.counters["unadmitted"] += sum(self.row(number) < 0 for number in seen)
        return sorted(admitted)

    def _new(self, step: int, number: int, count: int, home: Bucket) -> bool:
        total = count + home.candidates.get(number, 0)
        if total >= self.settings.admit_after:
            if 0 in home.slots:
                slot = home.slots.index(0)
            else:
                self.counters["collisions"] += 1
                key = home.last if self.settings.evict == "lru" else home.sightings
                idle = sorted((key[other], other) for other in home.slots if home.last[other] < step)
                slot = home.slots.index(idle[0][1]) if idle else -1
            if slot >= 0:
                self.counters["evicted"] += home.slots[slot] != 0
                self.counters["admitted"] += 1
                home.slots[slot] = number
                home.last[number], home.sightings[number] = step, total
                home.candidates.pop(number, None)
                return True
        if number not in home.candidates and len(home.candidates) == self.settings.candidates:
            del home.candidates[min(home.candidates, key=lambda other: (home.candidates[other], other))]
        home.candidates[number] = total
        return False
