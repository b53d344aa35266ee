"""Write dataset files from executors: path, rows, bytes and checksum come back in one pass.

File contents depend on the rows alone, never on how Spark batched them: row
groups have a fixed number of rows and each is one contiguous piece of memory.
"""

from __future__ import annotations

import hashlib
import html
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark import TaskContext
from pyspark.sql import DataFrame

from pad_dist import storage
from pad_dist.data.manifest import FileEntry
from spark_jobs.bins import bins_of

ROWS_PER_GROUP = 16384
SEQUENCES = pa.schema([("user_key", pa.string()), ("items", pa.list_(pa.int64()))])
ITEMS = pa.schema(
    [
        ("item_key", pa.string()),
        ("item_index", pa.int64()),
        ("train_frequency", pa.int64()),
        ("bin", pa.int32()),
        ("text", pa.string()),
    ]
)

Tables = Iterator[pa.Table]
Batches = Iterator[pa.RecordBatch]

_WRITTEN = "path string, rows long, bytes long, sha256 string, first_index long, counted long"


def write_sequences(events: DataFrame, root: str) -> tuple[list[FileEntry], int]:
    """Write partition k of `events` (user_key, item_index; users together, in order) as sequences/part-k.

    Returns:
        The files in order, and how many events they hold.
    """

    def write(batches: Batches) -> Batches:
        yield _write(root, "sequences", SEQUENCES, users_of(batches), _events_in)

    return _collect(events.select("user_key", "item_index"), write)


def write_items(
    items: DataFrame, root: str, next_rank: list[dict[int, int]], cuts: list[int]
) -> tuple[list[FileEntry], int]:
    """Write partition k of `items` (item_key, item_index, train_frequency, text or null) as items/part-k.

    Args:
        next_rank: per partition, train frequency -> popularity rank of its first item there.
        cuts: of `bins.bin_cuts`.

    Returns:
        The files in order, and how many items have no text of their own.
    """

    def write(batches: Batches) -> Batches:
        ranks = dict(next_rank[_partition()])
        tables = (_with_bin_and_text(batch, ranks, cuts) for batch in batches)
        yield _write(root, "items", ITEMS, tables, _untitled_in)

    return _collect(items.select("item_key", "item_index", "train_frequency", "text"), write)


def clean_text(text: str | None) -> str:
    """HTML entities unescaped, runs of white space made one blank."""
    return " ".join(html.unescape(text or "").split())


def _partition() -> int:
    context = TaskContext.get()
    assert context is not None
    return context.partitionId()


def _collect(frame: DataFrame, write: Callable[[Batches], Batches]) -> tuple[list[FileEntry], int]:
    rows = sorted(frame.mapInArrow(write, _WRITTEN).collect(), key=lambda row: str(row.path))
    entries = [FileEntry(**{name: row[name] for name in FileEntry.model_fields}) for row in rows]
    return entries, sum(row.counted for row in rows)


def _write(
    root: str, group: str, schema: pa.Schema, tables: Tables, count: Callable[[pa.Table], int]
) -> pa.RecordBatch:
    path = f"{group}/part-{_partition():05d}.parquet"
    rows = counted = 0
    first_index = None
    with storage.atomic_writer(storage.join(root, path)) as file:
        output = _HashingFile(file)
        with pq.ParquetWriter(output, schema, compression="zstd") as writer:
            for table in regroup(tables, ROWS_PER_GROUP):
                if "item_index" in schema.names and first_index is None:
                    first_index = table["item_index"][0].as_py()
                rows, counted = rows + table.num_rows, counted + count(table)
                writer.write_table(table.select(schema.names).cast(schema))
    written: dict[str, list[Any]] = {
        "path": [path],
        "rows": [rows],
        "bytes": [output.size],
        "sha256": [output.digest.hexdigest()],
        "first_index": pa.array([first_index], pa.int64()),
        "counted": [counted],
    }
    return pa.RecordBatch.from_pydict(written)


class _HashingFile:
    """A file for writing that knows the size and SHA-256 of what passed through."""

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


def regroup(tables: Tables, rows: int) -> Tables:
    """The same rows in tables of exactly `rows` (the last may be shorter), each one contiguous."""
    held: list[pa.Table] = []
    size = 0
    for table in tables:
        held.append(table)
        size += table.num_rows
        if size < rows:
            continue
        whole = pa.concat_tables(held)
        full = size - size % rows
        for start in range(0, full, rows):
            yield whole.slice(start, rows).combine_chunks()
        held, size = [whole.slice(full)], size - full
    if size:
        yield pa.concat_tables(held).combine_chunks()


def users_of(batches: Batches) -> Tables:
    """One row per run of equal user_key; a run may go over batches."""
    held: list[pa.Table] = []
    for batch in batches:
        held.append(pa.Table.from_batches([batch]))
        if held[0]["user_key"][0] == held[-1]["user_key"][-1]:
            continue  # still the same user
        table = pa.concat_tables(held)
        last = int(_starts(table["user_key"].combine_chunks())[-1])
        yield _grouped(table.slice(0, last))
        held = [table.slice(last)]
    if held:
        yield _grouped(pa.concat_tables(held))


def _starts(users: pa.Array) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Places where a new user begins."""
    changes = pc.not_equal(users.slice(1), users.slice(0, len(users) - 1)).to_numpy(zero_copy_only=False)
    return np.flatnonzero(np.concatenate([[True], changes]))


def _grouped(table: pa.Table) -> pa.Table:
    users = table["user_key"].combine_chunks()
    starts = _starts(users)
    offsets = pa.array(np.append(starts, len(users)), pa.int32())
    items = pa.ListArray.from_arrays(offsets, table["item_index"].combine_chunks())
    return pa.table({"user_key": users.take(pa.array(starts)), "items": items})


def _events_in(sequences: pa.Table) -> int:
    return int(pc.sum(pc.list_value_length(sequences["items"])).as_py())


def _with_bin_and_text(batch: pa.RecordBatch, ranks: dict[int, int], cuts: list[int]) -> pa.Table:
    keys = batch["item_key"].to_pylist()
    own = [clean_text(text) for text in batch["text"].to_pylist()]
    return pa.table(
        {
            "item_key": batch["item_key"],
            "item_index": batch["item_index"],
            "train_frequency": batch["train_frequency"],
            "bin": bins_of(batch["train_frequency"].to_numpy(), ranks, cuts),
            "text": [text or key for text, key in zip(own, keys, strict=True)],
            "untitled": [not text for text in own],
        }
    )


def _untitled_in(items: pa.Table) -> int:
    return int(pc.sum(items["untitled"]).as_py())
