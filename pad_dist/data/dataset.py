"""Reader of the dataset that the Spark job writes: item columns and sequence shards."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pad_dist import storage
from pad_dist.data.manifest import FileEntry, Manifest, read_manifest, verify_file
from pad_dist.data.order import BLOCK_ROWS
from pad_dist.errors import UserError

MADE_BY = "pad-dist run --config CONFIG"
REBUILD = f"run `{MADE_BY}` again"
MIN_SEQUENCE = 3
"""One train item, the validation target and the test target."""


class Jagged(NamedTuple):
    """Rows of different length, end to end: row i is items[offsets[i] : offsets[i + 1]]."""

    offsets: NDArray[np.int64]
    items: NDArray[np.int64]


def ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices start, start + 1, ... of each range, end to end: [sum(lengths)]."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


class Dataset:
    """A dataset directory at any fsspec URL; nothing but the manifest is read up front.

    Each file is checked against the manifest once per process, when it is first
    read. Shards stay in memory, least recently used out first, up to two blocks of
    rows (see `order.BLOCK_ROWS`), the most that one batch can touch.

    Attributes:
        url: the directory.
        users, items, interactions: counts; items are indexed 1..items.
        content_hash: hex digest of the content.
        shard_rows: users in each sequence shard.
    """

    def __init__(self, url: str, manifest: Manifest) -> None:
        self.url = url
        self.content_hash = manifest.content_hash()
        self._item_files = _files(url, manifest, "items")
        self._shards = _files(url, manifest, "sequences")
        self.users = _count(url, manifest, "users", self._shards)
        self.items = _count(url, manifest, "items", self._item_files)
        self.interactions = manifest.counts.get("interactions", 0)
        self.shard_rows = tuple(shard.rows for shard in self._shards)
        self._shard_starts = np.cumsum([0, *self.shard_rows])
        self._cache_rows = 2 * max(BLOCK_ROWS, *self.shard_rows)
        self._cache: OrderedDict[int, Jagged] = OrderedDict()
        self._verified: set[str] = set()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, url: str) -> Self:
        """Read the manifest.

        Raises:
            UserError: no dataset there, an empty one, or a manifest at odds with itself.
        """
        return cls(url, read_manifest(url, MADE_BY))

    def item_columns(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Columns of item_index in [start, stop), 0 <= start <= stop <= items + 1.

        Only the files that overlap the range are read. Row 0 is padding: 0 and 0.

        Returns:
            train_frequency: [stop - start] int64.
            bin: [stop - start] uint8, 1 (most popular) to 10.

        Raises:
            UserError: a file differs from the manifest.
        """
        if not 0 <= start <= stop <= self.items + 1:
            raise ValueError(f"item range [{start}, {stop}) is outside [0, {self.items + 1})")
        frequency = np.zeros(stop - start, np.int64)
        bins = np.zeros(stop - start, np.uint8)
        for first, entry in _with_first_index(self.url, self._item_files):
            low, high = max(start, first), min(stop, first + entry.rows)
            if low >= high:
                continue
            table = self._read(entry, ["item_index", "train_frequency", "bin"])
            index, counts, bin_of = (_integers(self._path(entry), table, name) for name in table.column_names)
            if not np.array_equal(index, np.arange(first, first + entry.rows)):
                raise UserError(f"{self._path(entry)} does not hold items {first} onwards in order: {REBUILD}")
            frequency[low - start : high - start] = counts[low - first : high - first]
            bins[low - start : high - start] = bin_of[low - first : high - first]
        return frequency, bins

    def sequences(self, shard: int) -> Jagged:
        """Whole histories of one shard, oldest item first.

        Raises:
            UserError: the file differs from the manifest or holds impossible sequences.
        """
        with self._lock:  # training reads ahead in a thread
            if shard not in self._cache:
                self._cache[shard] = self._read_shard(self._shards[shard])
            self._cache.move_to_end(shard)
            while len(self._cache) > 1 and sum(self.shard_rows[s] for s in self._cache) > self._cache_rows:
                self._cache.popitem(last=False)
            return self._cache[shard]

    def gather(self, rows: NDArray[np.int64]) -> Jagged:
        """Whole histories of the given row numbers (counted through all shards), in that order."""
        shards = np.searchsorted(self._shard_starts, rows, side="right") - 1
        lengths, parts = [np.zeros(1, np.int64)], [np.zeros(0, np.int64)]
        for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(shards)) + 1):
            if not len(run):
                continue
            shard = int(shards[run[0]])
            offsets, items = self.sequences(shard)
            local = rows[run] - self._shard_starts[shard]
            size = offsets[local + 1] - offsets[local]
            lengths.append(size)
            parts.append(items[ranges(offsets[local], size)])
        return Jagged(np.cumsum(np.concatenate(lengths)), np.concatenate(parts))

    def _read_shard(self, entry: FileEntry) -> Jagged:
        path = self._path(entry)
        column = self._read(entry, ["items"]).column("items").combine_chunks()
        if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
            raise UserError(f"{path}: column items is {column.type}, not list<int64>: {REBUILD}")
        offsets = column.offsets.to_numpy(zero_copy_only=False).astype(np.int64)
        values = column.values.to_numpy(zero_copy_only=False)
        if column.null_count or values.dtype != np.int64:
            raise UserError(f"{path}: column items is not list<int64> without nulls: {REBUILD}")
        items = values[offsets[0] : offsets[-1]]
        if len(items) and not 1 <= items.min() <= items.max() <= self.items:
            raise UserError(f"{path} holds an item outside 1..{self.items}: {REBUILD}")
        if entry.rows and np.diff(offsets).min() < MIN_SEQUENCE:
            raise UserError(f"{path} holds a sequence of fewer than {MIN_SEQUENCE} items: {REBUILD}")
        return Jagged(offsets - offsets[0], items)

    def _read(self, entry: FileEntry, columns: list[str]) -> Any:
        path = self._path(entry)
        if entry.path not in self._verified:
            verify_file(self.url, entry)
            self._verified.add(entry.path)
        fs, inner = storage.filesystem(path)
        try:
            with fs.open(inner, "rb") as file:
                parquet = pq.ParquetFile(file)
                missing = [name for name in columns if name not in parquet.schema_arrow.names]
                if missing:
                    raise UserError(f"{path} has no column {missing[0]}: {REBUILD}")
                table = parquet.read(columns=columns)
        except pa.ArrowException as error:
            raise UserError(f"{path} is not a readable Parquet file: {' '.join(str(error).split())}") from None
        if table.num_rows != entry.rows:
            raise UserError(f"{path} has {table.num_rows} rows, the manifest says {entry.rows}: {REBUILD}")
        return table.select(columns)

    def _path(self, entry: FileEntry) -> str:
        return storage.join(self.url, entry.path)


def _files(url: str, manifest: Manifest, group: str) -> list[FileEntry]:
    if not manifest.groups.get(group):
        raise UserError(f"{url} is not a dataset with data: the manifest lists no {group} files")
    return manifest.groups[group]


def _count(url: str, manifest: Manifest, name: str, files: list[FileEntry]) -> int:
    rows = sum(entry.rows for entry in files)
    if manifest.counts.get(name) != rows:
        raise UserError(
            f"{url}: the manifest counts {manifest.counts.get(name)} {name}, its files hold {rows}: {REBUILD}"
        )
    if not rows:
        raise UserError(
            f"{url} is an empty dataset (0 {name}): check data.interactions, data.min_rating, data.min_interactions"
        )
    return rows


def _with_first_index(url: str, files: list[FileEntry]) -> Iterator[tuple[int, FileEntry]]:
    expected = 1
    for entry in files:
        if entry.first_index != expected:
            raise UserError(f"{storage.join(url, entry.path)} should start at item {expected}: {REBUILD}")
        yield expected, entry
        expected += entry.rows


def _integers(path: str, table: Any, name: str) -> NDArray[np.int64]:
    column = table.column(name)
    if not pa.types.is_integer(column.type) or column.null_count:
        raise UserError(f"{path}: column {name} is not integer without nulls: {REBUILD}")
    return np.asarray(column.to_numpy(), np.int64)
