"""Measure a dataset version: quality.json and quality.html next to its manifest.

One Spark job whatever the size, one task per file. A task reads the columns it needs, row
group by row group, into Arrow and returns exact histograms. These are small: T events have
fewer than sqrt(2 T) distinct lengths or frequencies. Sums of integers depend on no order.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyspark.sql import SparkSession

from pad_dist import storage
from pad_dist.dataset.manifest import FileEntry, Manifest, read_manifest
from pad_dist.dataset.quality import QUALITY_SCHEMA, ItemKind, Measures, Turnover, build_drift, build_quality
from pad_dist.dataset.quality_page import quality_page
from pad_dist.dataset.text_table import BUILD_COMMAND

SAMPLES = 3
"""Rejected rows shown per reason."""
SAMPLE_CHARACTERS = 300

Ints = NDArray[np.int64]
Counts = dict[str, Counter[Any]]
"""What a task counts, by name: "lengths", "items", "text_lengths" and "sums"."""

_NO_USERS = pa.array([], pa.string())
_ABSENT, _INACTIVE, _ACTIVE = range(3)


class Version(NamedTuple):
    """A version's directory and manifest."""

    url: str
    manifest: Manifest

    def files(self, group: str) -> list[FileEntry]:
        """The files of a group in order."""
        return self.manifest.groups[group]


def write_quality(spark: SparkSession, version_dir: str, manifest: Manifest, previous_dir: str | None) -> None:
    """Write quality.json and quality.html of a version that is about to be published.

    Args:
        spark: any session.
        version_dir: the version's directory, complete except for its manifest.json.
        manifest: of this version; only the items and sequences files that it lists are read.
        previous_dir: directory of the version that it grew from.
    """
    now = Version(version_dir, manifest)
    before = Version(previous_dir, read_manifest(previous_dir, BUILD_COMMAND)) if previous_dir else None
    measures, turnover = _measure(spark, now, before)
    quality = build_quality(manifest, measures, _samples(version_dir))
    if before is not None:
        earlier = _quality_of(spark, before)
        quality["drift"] = build_drift(earlier, quality, turnover, before.manifest.content_hash())
    storage.write_json(storage.join(version_dir, "quality.json"), quality)
    page = quality_page(quality, version_dir.rstrip("/").rpartition("/")[2])
    storage.write_bytes(storage.join(version_dir, "quality.html"), page.encode())


def _quality_of(spark: SparkSession, version: Version) -> dict[str, Any]:
    """The quality that a version was published with; measured anew if that has another schema version."""
    path = storage.join(version.url, "quality.json")
    if storage.exists(path):
        quality: dict[str, Any] = storage.read_json(path)
        if quality["schema_version"] == QUALITY_SCHEMA:
            return quality
    return build_quality(version.manifest, _measure(spark, version, None)[0], _samples(version.url))


def _measure(spark: SparkSession, now: Version, before: Version | None) -> tuple[Measures, Turnover | None]:
    groups = [("sequences", k) for k in range(len(now.files("sequences")))]
    groups += [("items", k) for k in range(len(now.files("items")))]

    def measure(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for number in (int(task) for batch in batches for task in batch.column("id").to_pylist()):
            group, k = groups[number]
            counts = _count_users(now, k, before) if group == "sequences" else _count_items(now, k, before)
            part = {name: list(counter.items()) for name, counter in counts.items()}
            yield pa.RecordBatch.from_pylist([{"part": json.dumps(part)}])

    tasks = spark.range(0, len(groups), 1, len(groups))
    counts: defaultdict[str, Counter[Any]] = defaultdict(Counter)
    for row in tasks.mapInArrow(measure, "part string").collect():
        for name, pairs in json.loads(row.part).items():
            # JSON has lists where the keys are tuples.
            counts[name].update({tuple(key) if isinstance(key, list) else key: n for key, n in pairs})
    sums = counts["sums"]
    measures = Measures(
        lengths=counts["lengths"],
        items={ItemKind(*kind): n for kind, n in counts["items"].items()},
        text_lengths=counts["text_lengths"],
        valid_users=sums["valid_users"],
        test_users=sums["test_users"],
    )
    if before is None:
        return measures, None
    sums["gone_users"] = before.manifest.counts["users"] - sums["met_users"]
    sums["gone_events"] += before.manifest.counts["interactions"] - sums["met_events"]
    return measures, Turnover(**{field.name: sums[field.name] for field in fields(Turnover)})


def _count_users(now: Version, k: int, before: Version | None) -> Counts:
    """Histories of file k of the sequences, and how they compare with those of `before`."""
    sums: Counter[str] = Counter()
    users, lengths = [_NO_USERS], [np.empty(0, np.int64)]
    for table in _row_groups(now, "sequences", k, ["user_key", "items", "valid", "test"]):
        lengths.append(_lengths(table))
        sums["valid_users"] += _number(pc.greater_equal(table["valid"], 0))
        sums["test_users"] += _number(pc.greater_equal(table["test"], 0))
        if before is not None:
            users += table["user_key"].chunks
            known = before.manifest.counts["items"]
            sums["events_on_new_items"] += _number(pc.greater(pc.list_flatten(table["items"]), known))
    length = np.concatenate(lengths)
    if before is not None:
        shards = range(len(before.files("sequences")))
        # A user's shard is a function of the key and of how many shards there are.
        where = [k] if len(shards) == len(now.files("sequences")) else shards
        sums.update(_compare(pa.chunked_array(users), length, before, where))
    return {"lengths": _histogram(length), "sums": sums}


def _compare(users: pa.ChunkedArray, length: Ints, before: Version, shards: Iterable[int]) -> Counter[str]:
    """How users [n] and their history lengths [n] differ from `shards` of the previous version."""
    earlier = np.zeros_like(length)
    met_users = 0
    for shard in shards:
        theirs, keys = [np.empty(0, np.int64)], [_NO_USERS]
        for table in _row_groups(before, "sequences", shard, ["user_key", "items"]):
            theirs.append(_lengths(table))
            keys += table["user_key"].chunks
        place = pc.index_in(users, value_set=pa.chunked_array(keys))
        met = pc.is_valid(place).to_numpy()
        earlier[met] = np.concatenate(theirs)[place.drop_null().to_numpy()]
        met_users += int(np.count_nonzero(met))
    return Counter(
        met_users=met_users,
        met_events=int(earlier.sum()),
        new_users=len(length) - met_users,
        new_events=int(np.maximum(length - earlier, 0).sum()),
        gone_events=int(np.maximum(earlier - length, 0).sum()),
    )


def _count_items(now: Version, k: int, before: Version | None) -> Counts:
    """Items of file k by kind, and how they compare with those of `before`."""
    counts: Counts = {"items": Counter(), "text_lengths": Counter(), "sums": Counter()}
    for table in _row_groups(now, "items", k, ["item_key", "item_index", "train_frequency", "bin", "text"]):
        active = pc.greater(table["bin"], 0)
        has_text = pc.not_equal(table["text"], table["item_key"])
        kinds = pa.table([table["train_frequency"], table["bin"], has_text], names=list(ItemKind._fields))
        counted = kinds.group_by(list(ItemKind._fields)).aggregate([([], "count_all")]).to_pydict()
        keys = zip(*(counted[name] for name in ItemKind._fields), strict=True)
        counts["items"].update(dict(zip(keys, counted["count_all"], strict=True)))
        titles = table["text"].filter(pc.and_(active, has_text))
        counts["text_lengths"].update(_histogram(pc.utf8_length(titles).to_numpy()))
        if before is not None:
            index = table["item_index"].to_numpy()
            was = _activity(before, int(index[0]), int(index[-1]) + 1)
            is_active = active.to_numpy()
            counts["sums"]["new_items"] += int(np.count_nonzero(was == _ABSENT))
            counts["sums"]["gone_items"] += int(np.count_nonzero((was == _ACTIVE) & ~is_active))
            counts["sums"]["returned_items"] += int(np.count_nonzero((was == _INACTIVE) & is_active))
    return counts


def _activity(version: Version, start: int, stop: int) -> NDArray[np.int8]:
    """[stop - start] whether items start..stop-1 were absent from a version, inactive or active in it."""
    activity = np.full(stop - start, _ABSENT, np.int8)
    for k, entry in enumerate(version.files("items")):
        assert entry.first_index is not None
        low, high = max(start, entry.first_index), min(stop, entry.first_index + entry.rows)
        if low < high:
            bins = np.concatenate([table["bin"].to_numpy() for table in _row_groups(version, "items", k, ["bin"])])
            part = bins[low - entry.first_index : high - entry.first_index]
            activity[low - start : high - start] = np.where(part > 0, _ACTIVE, _INACTIVE)
    return activity


def _row_groups(version: Version, group: str, k: int, columns: list[str]) -> Iterator[pa.Table]:
    """The row groups of file k of a group, which fit in memory however long the file is."""
    fs, path = storage.filesystem(storage.join(version.url, version.files(group)[k].path))
    with fs.open(path, "rb") as file:
        parquet = pq.ParquetFile(file)
        for number in range(parquet.num_row_groups):
            yield parquet.read_row_group(number, columns=columns)


def _lengths(table: pa.Table) -> Ints:
    lengths: Ints = pc.list_value_length(table["items"]).to_numpy().astype(np.int64)
    return lengths


def _histogram(values: NDArray[Any]) -> Counter[Any]:
    distinct, counts = np.unique(values, return_counts=True)
    return Counter(dict(zip(distinct.tolist(), counts.tolist(), strict=True)))


def _number(mask: pa.ChunkedArray) -> int:
    """How many are true."""
    return int(pc.sum(mask).as_py() or 0)


def _samples(version_dir: str) -> dict[str, list[str]]:
    """The first rejected rows in sorted order, by "input: reason" as in the manifest."""
    fs, path = storage.filesystem(storage.join(version_dir, "rejected"))
    rows: defaultdict[str, list[str]] = defaultdict(list)
    for file in map(str, fs.glob(f"{path}/*.jsonl")):
        role = file.rsplit("/", 1)[-1].removesuffix(".jsonl")
        with fs.open(file, "rb") as lines:
            for entry in map(json.loads, lines):
                reason = f"{role}: {entry['reason']}"
                # Never more than the few that are shown: an input may have many rejected rows of any width.
                rows[reason] = heapq.nsmallest(SAMPLES, [*rows[reason], entry["row"][:SAMPLE_CHARACTERS]])
    return dict(rows)
