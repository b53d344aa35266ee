"""Write dataset files from executors; one pass gives path, rows, bytes and checksum.

File contents depend on the rows alone, never on how Spark batched them: row groups
have a fixed number of rows and each is one contiguous piece of memory. A task that
Spark runs twice writes the same bytes to the same path.
"""

from __future__ import annotations

import hashlib
import html
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark import TaskContext
from pyspark.sql import DataFrame

from pad_dist import storage
from pad_dist.dataset.manifest import FileEntry, verify_file
from spark_jobs.histories import (
    EVENTS,
    SEQUENCES,
    Ints,
    KeysOf,
    Rules,
    Tables,
    histories,
    merged,
    sequences,
    train_items,
    without,
)
from spark_jobs.session import persisted

ROWS_PER_GROUP = 16384
EVENTS_PER_GROUP = 1 << 20
_MAX_BACKLOG = 1 << 22
ITEMS = pa.schema(
    [
        ("item_key", pa.string()),
        ("item_index", pa.int64()),
        ("train_frequency", pa.int64()),
        ("bin", pa.int32()),
        ("text", pa.string()),
    ]
)

Batches = Iterator[pa.RecordBatch]

_WRITTEN = "path string, rows long, bytes long, sha256 string, first_index long, counts map<string, long>"


@dataclass(frozen=True)
class Before:
    """The events that a build starts from: the previous version's files, one per shard, and the erased items."""

    root: str
    events: list[FileEntry]
    keys_of: KeysOf
    erased_items: Ints


def write_shards(
    rows: DataFrame, root: str, before: Before | None, erased_users: list[str], rules: Rules, cached: ExitStack
) -> tuple[dict[str, list[FileEntry]], dict[str, int], DataFrame]:
    """Write events/part-k and sequences/part-k of shard k.

    Args:
        rows: (user_key, time, item_index); partition k holds shard k in order of user, time, item key, and a row
            without a user, so that Spark runs a task even if nothing is new.

    Returns:
        Files of the groups events and sequences. Their counts: events, interactions, users whose train part is long
        enough to learn from (train_users) or who have a target (valid_users, test_users). Train frequencies:
        (item_index, train_frequency), several rows for one item, cached by Spark until `cached` ends.
    """
    erased = pa.array(erased_users, pa.string())

    def write(batches: Batches) -> Batches:
        shard = _partition()
        with ExitStack() as files:
            events = files.enter_context(_ShardFile(root, "events", shard, EVENTS))
            cut = files.enter_context(_ShardFile(root, "sequences", shard, SEQUENCES))
            frequencies = _ItemCounts()
            for table in _shard(batches, shard, before, erased):
                view = sequences(table, rules)
                events.add(table, {"events": _events_in(table)}, _events_in(table))
                cut.add(view, _counts(view), _events_in(view))
                frequencies.add(train_items(view))
        written = [pa.Table.from_batches([file.written()]) for file in (events, cut)]
        yield from pa.concat_tables([*written, frequencies.table()], promote_options="default").to_batches()

    schema = f"{_WRITTEN}, item_index long, train_frequency long"
    results = rows.select("user_key", "time", "item_index").mapInArrow(write, schema)
    entries, counts = _entries(persisted(results, cached).where("path IS NOT NULL"))
    files = {group: [e for e in entries if e.path.startswith(f"{group}/")] for group in ("events", "sequences")}
    return files, counts, results.where("path IS NULL").select("item_index", "train_frequency")


def _counts(sequences: pa.Table) -> dict[str, int]:
    users = {"train_users": ("train", 1), "valid_users": ("valid", 0), "test_users": ("test", 0)}
    return {"interactions": _events_in(sequences)} | {
        name: int(pc.sum(pc.greater(sequences[column], least)).as_py() or 0) for name, (column, least) in users.items()
    }


def _shard(batches: Batches, shard: int, before: Before | None, erased_users: pa.Array) -> Tables:
    tables = histories(batch.filter(pc.is_valid(batch["user_key"])) for batch in batches)
    erased_items: Ints = np.empty(0, np.int64)
    if before is not None:
        erased_items = before.erased_items
        tables = merged(_old(before, shard), tables, before.keys_of)
    for table in tables:
        left = without(table, erased_users, erased_items)
        if left.num_rows:
            yield left


def _old(before: Before, shard: int) -> Tables:
    entry = before.events[shard]
    verify_file(before.root, entry)
    fs, path = storage.filesystem(storage.join(before.root, entry.path))
    with fs.open(path, "rb") as file:
        parquet = pq.ParquetFile(file)
        for group in range(parquet.num_row_groups):
            yield parquet.read_row_group(group)


def write_items(items: DataFrame, root: str) -> tuple[list[FileEntry], dict[str, int]]:
    """Write partition k of `items` (columns of ITEMS, text may be null) as items/part-k.

    Returns:
        The files in order, and the number of active items without a text (items_without_text).
    """

    def write(batches: Batches) -> Batches:
        with _ShardFile(root, "items", _partition(), ITEMS) as file:
            for batch in batches:
                keys, bins = batch["item_key"].to_pylist(), batch["bin"].to_pylist()
                cleaned = [clean_text(text) for text in batch["text"].to_pylist()]
                texts = [text or key for text, key in zip(cleaned, keys, strict=True)]
                untitled = sum(b > 0 and text == key for text, key, b in zip(texts, keys, bins, strict=True))
                table = pa.Table.from_batches([batch]).set_column(ITEMS.names.index("text"), "text", [texts])
                file.add(table, {"items_without_text": untitled})
        yield file.written()

    return _entries(items.select(*ITEMS.names).mapInArrow(write, _WRITTEN))


def clean_text(text: str | None) -> str:
    """Unescape HTML entities and turn runs of white space into one space."""
    return " ".join(html.unescape(text or "").split())


def _partition() -> int:
    context = TaskContext.get()
    assert context is not None
    return context.partitionId()


def _entries(written: DataFrame) -> tuple[list[FileEntry], dict[str, int]]:
    rows = sorted(written.collect(), key=lambda row: str(row.path))
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update(row.counts)
    return [FileEntry(**{name: row[name] for name in FileEntry.model_fields}) for row in rows], dict(counts)


class _ShardFile:
    """One Parquet file of a version, published when the block ends.

    A row group takes rows until it holds ROWS_PER_GROUP of them or EVENTS_PER_GROUP
    events, so that long histories do not make large groups.
    """

    def __init__(self, root: str, group: str, shard: int, schema: pa.Schema) -> None:
        self._path, self._schema = f"{group}/part-{shard:05d}.parquet", schema
        self._url = storage.join(root, self._path)
        self._rows = 0
        self._counts: Counter[str] = Counter()
        self._first_index: int | None = None
        self._pending: list[pa.Table] = []
        self._pending_rows = self._pending_events = 0

    def __enter__(self) -> _ShardFile:
        with ExitStack() as opened:
            self._output = _HashingFile(opened.enter_context(storage.atomic_writer(self._url)))
            self._writer = opened.enter_context(pq.ParquetWriter(self._output, self._schema, compression="zstd"))
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *failure: Any) -> bool | None:
        if failure[0] is None and self._pending:
            self._writer.write_table(pa.concat_tables(self._pending).combine_chunks())
        return self._opened.__exit__(*failure)

    def add(self, table: pa.Table, counts: dict[str, int], events: int = 0) -> None:
        """Append rows with `events` events in all; `written` reports the sums of `counts`."""
        self._counts.update(counts)
        if not table.num_rows:
            return
        if "item_index" in self._schema.names and self._first_index is None:
            self._first_index = table["item_index"][0].as_py()
        self._rows += table.num_rows
        self._pending.append(table.cast(self._schema))
        self._pending_rows, self._pending_events = self._pending_rows + table.num_rows, self._pending_events + events
        if self._pending_rows >= ROWS_PER_GROUP or self._pending_events >= EVENTS_PER_GROUP:
            self._write_full_groups()

    def _write_full_groups(self) -> None:
        rows = pa.concat_tables(self._pending)
        sizes = pc.list_value_length(rows["items"]).to_numpy() if "items" in rows.schema.names else np.zeros(len(rows))
        before = np.concatenate([[0], np.cumsum(sizes)])
        start = 0
        while True:
            # The row that brings the group to its limit is its last one.
            stop = min(start + ROWS_PER_GROUP, int(np.searchsorted(before, before[start] + EVENTS_PER_GROUP)))
            if stop > len(rows):
                break
            self._writer.write_table(rows.slice(start, stop - start).combine_chunks())
            start = stop
        self._pending = [rows.slice(start)]
        self._pending_rows, self._pending_events = len(rows) - start, int(before[-1] - before[start])

    def written(self) -> pa.RecordBatch:
        """The row of `_WRITTEN` that describes this file, once it is published."""
        values: dict[str, list[Any]] = {
            "path": [self._path],
            "rows": [self._rows],
            "bytes": [self._output.size],
            "sha256": [self._output.digest.hexdigest()],
            "first_index": pa.array([self._first_index], pa.int64()),
            "counts": pa.array([list(self._counts.items())], pa.map_(pa.string(), pa.int64())),
        }
        return pa.RecordBatch.from_pydict(values)


class _ItemCounts:
    """Counts how often each item occurs; keeps one number for each distinct item, and a bounded backlog."""

    def __init__(self) -> None:
        self._items: list[Ints] = []
        self._counts: list[Ints] = []
        self._backlog = 0

    def add(self, items: Ints) -> None:
        """Count occurrences."""
        distinct, counts = np.unique(items, return_counts=True)
        self._items.append(distinct)
        self._counts.append(counts)
        self._backlog += len(distinct)
        if self._backlog > _MAX_BACKLOG:
            self._sum()
            self._backlog = 0

    def _sum(self) -> None:
        items, places = np.unique(np.concatenate(self._items), return_inverse=True)
        counts = np.bincount(places, np.concatenate(self._counts))
        self._items, self._counts = [items], [counts.astype(np.int64)]

    def table(self) -> pa.Table:
        """item_index and train_frequency."""
        if self._items:
            self._sum()
        empty: Ints = np.empty(0, np.int64)
        items, counts = (values[0] if values else empty for values in (self._items, self._counts))
        return pa.table({"item_index": pa.array(items, pa.int64()), "train_frequency": pa.array(counts, pa.int64())})


class _HashingFile:
    """A file for writing that tracks the size and SHA-256 of its content."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.size, self.digest = file, 0, hashlib.sha256()

    def write(self, block: bytes) -> int:
        self.size += len(block)
        self.digest.update(block)
        return self._file.write(block)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self._file.flush()


def _events_in(table: pa.Table) -> int:
    return int(pc.sum(pc.list_value_length(table["items"])).as_py() or 0)
