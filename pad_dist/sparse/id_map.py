"""Maps ids without a catalogue to table rows: a bounded map over an unbounded stream.

The top bits of a 64-bit hash of an id give its bucket, and bucket b owns rows
1 + b * slots onwards of the table. A rank owns a range of buckets, so every array
here is cut by bucket and fits any number of ranks. The state of a bucket depends
only on its ids in each global batch, in ascending order.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from pad_dist.config import HashedConfig
from pad_dist.data.hashing import hash_ids
from pad_dist.errors import UserError
from pad_dist.sparse.exchange import Exchange
from pad_dist.sparse.row_shards import row_range
from pad_dist.sparse.spec import TableShard

Ints = NDArray[np.int64]

_MAX = np.iinfo(np.int64).max
_BUCKETS_PER_RANK = 64
"""So that no rank owns many more rows than another."""
_BLOCK_SLOTS = 1 << 19
"""Slots compared at a time: limits temporary memory to about 4 MiB per array."""


class Counter(IntEnum):
    """Exact counts of what happens in training.

    ADMITTED: an id got a row. EVICTED: another id lost its row to it. COLLISIONS: an id was due a row, but none was
    free in its bucket; it took another id's, or waits if all ids of the bucket are in the same batch. UNADMITTED: an
    id of a global batch, counted once and negatives included, had no row when it was looked up.
    """

    ADMITTED = 0
    EVICTED = 1
    COLLISIONS = 2
    UNADMITTED = 3


def map_bytes(settings: HashedConfig) -> int:
    """Bytes of the map of one table, over all ranks, for any stream of ids."""
    per_bucket = 16 * settings.candidates + 8 + 8 * len(Counter)
    return 24 * settings.rows + per_bucket * settings.buckets


class IdMap:
    """Rows of ids; int64, 0 is padding and has row 0."""

    def __init__(self, settings: HashedConfig, group: dist.ProcessGroup | None) -> None:
        """An empty map.

        Raises:
            UserError: too few buckets for the ranks.
        """
        self._settings = settings
        self._group = group
        self._world_size = dist.get_world_size(group) if group else 1
        if settings.buckets < _BUCKETS_PER_RANK * self._world_size:
            raise UserError(
                f"sparse.hashed.buckets={settings.buckets} are too few for {self._world_size} ranks, which need "
                f"{_BUCKETS_PER_RANK} each: raise it, and train from the beginning"
            )
        self._bits = np.uint64(64 - (settings.buckets.bit_length() - 1))
        _, self._buckets_per_rank = row_range(settings.buckets, 0, self._world_size)
        self._first, stop = row_range(settings.buckets, dist.get_rank(group) if group else 0, self._world_size)
        local_buckets = stop - self._first
        self._slots = settings.rows // settings.buckets
        # 0 marks a free slot or candidate's place. A bucket's clock ticks when a batch has ids of it.
        self._ids = np.zeros((local_buckets, self._slots), np.int64)
        self._last_seen = np.zeros((local_buckets, self._slots), np.int64)
        self._sightings = np.zeros((local_buckets, self._slots), np.int64)
        self._candidates = np.zeros((local_buckets, settings.candidates), np.int64)
        self._candidate_sightings = np.zeros((local_buckets, settings.candidates), np.int64)
        self._clock = np.zeros((local_buckets, 1), np.int64)
        self._counters = np.zeros((local_buckets, len(Counter)), np.int64)

    def shards(self, table: str) -> list[TableShard]:
        """This rank's part of the map of a table, as arrays cut by bucket."""
        arrays = {
            "ids": self._ids,
            "last_seen": self._last_seen,
            "sightings": self._sightings,
            "candidates": self._candidates,
            "candidate_sightings": self._candidate_sightings,
            "clock": self._clock,
            "counters": self._counters,
        }
        buckets = self._settings.buckets
        return [
            TableShard(f"{table}.{name}", torch.from_numpy(a), (self._first, 0), (buckets, a.shape[1]), changes="all")
            for name, a in arrays.items()
            if len(a)
        ]

    def counters(self) -> dict[str, int]:
        """Totals over all ranks since the map was empty. Collective."""
        total = torch.from_numpy(self._counters.sum(0))
        if self._group is not None:
            device = "cuda" if dist.get_backend(self._group) == "nccl" else "cpu"
            total = total.to(device)
            dist.all_reduce(total, group=self._group)
        return {counter.name.lower(): int(total[counter]) for counter in Counter}

    def resolve(self, ids: Tensor, sightings: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rows of ids, after the map has learned from their batch. Collective.

        With `sightings` an id is due a row once it was seen `admit_after` times. It gets a free row of its bucket, or
        the row of an id that was not seen in this batch; `evict` says which (of equals the lower id). Until then the
        id is one of the bucket's candidates. A new candidate replaces the one seen least (of equals the lower id),
        whose count is lost. Sightings are first summed over ranks, so that the map is a function of the global
        batches. Without `sightings` nothing changes.

        Args:
            ids: [U] int64; several ranks may ask for the same id.
            sightings: [U] int64, how often this rank saw each id; 0: it is only looked up.

        Returns:
            rows: [U] int64, from 1 to `rows`; 0 for id 0; -1 for an id without a row.
            admitted: [A, 2] int64, row and id of each id that got a row, the same on every rank.
        """
        asked = ids.cpu().numpy()
        owners = self._bucket(asked) // self._buckets_per_rank
        order = np.argsort(owners, kind="stable")
        order = order[asked[order] != 0]
        counts = np.bincount(owners[order], minlength=self._world_size)
        exchange = Exchange(torch.from_numpy(counts).to(ids.device), self._group)
        seen = torch.zeros_like(ids) if sightings is None else sightings
        wanted = torch.stack([ids, seen], dim=1)[torch.from_numpy(order).to(ids.device)]
        answers, admitted = self._answer(exchange.to_owners(wanted).cpu().numpy(), learn=sightings is not None)
        rows = torch.where(ids == 0, 0, -1)
        rows[torch.from_numpy(order).to(ids.device)] = exchange.to_senders(torch.from_numpy(answers).to(ids.device))
        news = torch.from_numpy(admitted).to(ids.device)
        if sightings is not None and self._group is not None:
            counts_to_all = torch.full((self._world_size,), len(news), device=ids.device)
            news = Exchange(counts_to_all, self._group).to_owners(news.repeat(self._world_size, 1))
        return rows, news

    def _answer(self, wanted: Ints, *, learn: bool) -> tuple[Ints, Ints]:
        """[n, 2] ids of this rank's buckets and sightings, from all ranks -> [n] rows, [a, 2] admitted rows and ids."""
        ids, places = np.unique(wanted[:, 0], return_inverse=True)
        buckets = self._bucket(ids) - self._first
        admitted = np.zeros((0, 2), np.int64)
        if learn:
            seen = np.zeros(len(ids), np.int64)
            np.add.at(seen, places, wanted[:, 1])
            admitted = self._learn(buckets[seen > 0], ids[seen > 0], seen[seen > 0])
        slots = self._find(buckets, ids)
        if learn:
            np.add.at(self._counters[:, Counter.UNADMITTED], buckets[slots < 0], 1)
        rows: Ints = np.where(slots < 0, -1, self._row(buckets, slots))[places]
        return rows, admitted

    def _learn(self, buckets: Ints, ids: Ints, seen: Ints) -> Ints:
        """Take in the ids of one global batch [n], ascending; returns [a, 2], row and id of each that got a row."""
        self._clock[np.unique(buckets)] += 1
        slots = self._find(buckets, ids)
        known = slots >= 0
        place = buckets[known], slots[known]
        self._last_seen[place] = self._clock[buckets[known], 0]
        self._sightings[place] += seen[known]
        # In turns with at most one id per bucket: the first new id of each bucket, then the second ...
        new = np.flatnonzero(~known)
        new = new[np.argsort(buckets[new], kind="stable")]
        _, starts, sizes = np.unique(buckets[new], return_index=True, return_counts=True)
        turns = np.arange(len(new)) - np.repeat(starts, sizes)
        new = new[np.argsort(turns, kind="stable")]
        admitted = [np.zeros((0, 2), np.int64)]
        for turn in np.split(new, np.cumsum(np.bincount(turns))[:-1]):
            for block in self._blocks(len(turn)):
                now = turn[block]
                admitted.append(self._take_in(buckets[now], ids[now], seen[now]))
        return np.concatenate(admitted)

    def _take_in(self, buckets: Ints, ids: Ints, seen: Ints) -> Ints:
        """Admit ids [n] without a row, of different buckets, or count them as candidates."""
        candidates, slot_ids = self._candidates[buckets], self._ids[buckets]
        matches = candidates == ids[:, None]
        is_candidate = matches.any(1)
        # Free places and free slots have the lowest values, 0, so they are used first.
        place = np.where(is_candidate, matches.argmax(1), _lowest(self._candidate_sightings[buckets], candidates))
        total = seen + np.where(is_candidate, self._candidate_sightings[buckets, place], 0)
        idle = self._last_seen[buckets] < self._clock[buckets]
        value = self._last_seen[buckets] if self._settings.evict == "lru" else self._sightings[buckets]
        slot = _lowest(np.where(idle, value, _MAX), slot_ids)
        each = np.arange(len(ids))
        due = total >= self._settings.admit_after
        admitted = due & idle[each, slot]
        taken = slot_ids[each, slot] != 0

        self._counters[buckets, Counter.ADMITTED] += admitted
        self._counters[buckets, Counter.EVICTED] += admitted & taken
        self._counters[buckets, Counter.COLLISIONS] += due & taken
        at = buckets[admitted], slot[admitted]
        self._ids[at] = ids[admitted]
        self._last_seen[at] = self._clock[buckets[admitted], 0]
        self._sightings[at] = total[admitted]
        changed = is_candidate | ~admitted
        at = buckets[changed], place[changed]
        self._candidates[at] = np.where(admitted, 0, ids)[changed]
        self._candidate_sightings[at] = np.where(admitted, 0, total)[changed]
        news: Ints = np.stack([self._row(buckets, slot), ids], axis=1)[admitted]
        return news

    def _find(self, buckets: Ints, ids: Ints) -> Ints:
        """[n] slots of ids in their buckets, -1 for an id without one."""
        slots = np.full(len(ids), -1)
        for block in self._blocks(len(ids)):
            same = self._ids[buckets[block]] == ids[block, None]
            slots[block] = np.where(same.any(1), same.argmax(1), -1)
        return slots

    def _blocks(self, count: int) -> Iterator[slice]:
        size = max(1, _BLOCK_SLOTS // max(self._slots, self._settings.candidates))
        return (slice(start, start + size) for start in range(0, count, size))

    def _bucket(self, ids: Ints) -> Ints:
        return np.asarray(hash_ids(ids) >> self._bits, np.int64)

    def _row(self, buckets: Ints, slots: Ints) -> Ints:
        rows: Ints = 1 + (self._first + buckets) * self._slots + slots
        return rows


def _lowest(values: Ints, ids: Ints) -> Ints:
    """[n] column of the lowest of values [n, m]; among ties, of the lowest id."""
    ties = values == values.min(1, keepdims=True)
    lowest = np.where(ties, ids, _MAX).min(1, keepdims=True)
    column: Ints = (ties & (ids == lowest)).argmax(1)
    return column
