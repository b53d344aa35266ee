"""Reads the dataset that the Spark job writes: item columns and sequence shards."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pad_dist import storage
from pad_dist.dataset import versions
from pad_dist.dataset.manifest import FileEntry, Manifest, read_manifest, verify_file
from pad_dist.errors import UserError

MADE_BY = "pad-dist run --config CONFIG"
REBUILD = f"run `{MADE_BY}` again"
BLOCK_ROWS = 1 << 18
"""Users whose histories are read, kept in memory and permuted together."""
SPLIT_COLUMNS = ("train", "valid", "test")

Ints = NDArray[np.int64]
ItemColumns = tuple[NDArray[np.int32], NDArray[np.uint8]]
"""train_frequency and bin of a range of items."""
_MOST = np.iinfo(np.int32).max


class Histories(NamedTuple):
    """Users' histories end to end, oldest item first, and the held-out targets of each.

    Attributes:
        offsets: [B + 1]; the history of user i is items[offsets[i] : offsets[i + 1]].
        items: [offsets[-1]] item_index.
        train: [B] how many of the first items are for training, from 0.
        valid, test: [B] place in the history of the held-out target, at least 1; the context is every item
            before it. -1: the user has none.
    """

    offsets: Ints
    items: Ints
    train: Ints
    valid: Ints
    test: Ints


def ranges(starts: Ints, lengths: Ints) -> Ints:
    """Indices start, start + 1, ... of each range, end to end: [sum(lengths)]."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


def key_id(key: str) -> int:
    """The 64-bit id of an item's key: the first 8 bytes of its BLAKE2b digest, never 0.

    >>> key_id("B00005N7P0")
    -53099936341346303
    """
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) or 1


class Dataset:
    """One version of a dataset at any fsspec URL; opening it reads the manifest alone.

    Each file is checked against the manifest once per process, when it is first
    read. Shards stay in a least-recently-used cache of up to two blocks of rows
    (see `BLOCK_ROWS`), the most that one batch can touch.

    Attributes:
        url: the version's directory; it does not change when a newer version is published.
        version: the version's id, None for a directory outside any dataset's versions.
        item_map: [[items, digest], ...] of each version that added items, oldest first.
        users, items, interactions: counts; items are indexed 1..items.
        content_hash: hex digest of the content.
        shard_rows: users in each sequence shard.
    """

    def __init__(self, url: str, manifest: Manifest) -> None:
        self.url = url
        self.version = url.rstrip("/").rpartition("/")[2] if versions.root_of(url) != url else None
        self.content_hash = manifest.content_hash()
        self._item_files = _files(url, manifest, "items")
        self._shards = _files(url, manifest, "sequences")
        self.users = _count(url, manifest, "users", self._shards)
        self.items = _count(url, manifest, "items", self._item_files)
        self.item_map = _item_map(url, manifest, self.items)
        self.interactions = manifest.counts.get("interactions", 0)
        self.shard_rows = tuple(shard.rows for shard in self._shards)
        self._shard_starts = np.cumsum([0, *self.shard_rows])
        self._cache_rows = 2 * max(BLOCK_ROWS, *self.shard_rows)
        self._cache: OrderedDict[int, Histories] = OrderedDict()
        self._columns: tuple[tuple[int, int], ItemColumns] | None = None
        self._verified: set[str] = set()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, url: str) -> Self:
        """Read the manifest of the current version of `url`, or of `url` itself where it names one version.

        Raises:
            UserError: no dataset at `url`, an empty one, or a manifest that contradicts itself.
        """
        url = versions.resolve(url)
        return cls(url, read_manifest(url, MADE_BY))

    def item_columns(self, start: int, stop: int) -> ItemColumns:
        """Columns of item_index in [start, stop), 0 <= start <= stop <= items + 1; read-only.

        Only the files that overlap the range are read. The last range is cached, as
        each rank validates after every epoch. Row 0 is padding: 0 and 0.

        Returns:
            train_frequency: [stop - start] int32; larger values become 2^31 - 1.
            bin: [stop - start] uint8, 1 (most popular) to 10; 0 for items that are out of use
                (erased, or below the k-core): they have no events and are never ranked.

        Raises:
            UserError: a file differs from the manifest.
        """
        if self._columns is None or self._columns[0] != (start, stop):
            self._columns = (start, stop), self._read_item_columns(start, stop)
        return self._columns[1]

    def item_ids(self, start: int, stop: int) -> Ints:
        """[stop - start] 64-bit id of item_index in [start, stop): a hash of its key; 0 for padding.

        A key has the same id in any dataset. Two keys have the same id, and share a row, with probability 2^-64.
        Erased items have lost their keys and share one id.

        Raises:
            UserError: a file differs from the manifest.
        """
        ids = np.zeros(stop - start, np.int64)
        for first, entry, table in self._item_tables(start, stop, ["item_key"]):
            keys = table.column("item_key").to_pylist()
            low, high = max(start, first), min(stop, first + entry.rows)
            ids[low - start : high - start] = [key_id(key) for key in keys[low - first : high - first]]
        return ids

    def _read_item_columns(self, start: int, stop: int) -> ItemColumns:
        frequency = np.zeros(stop - start, np.int32)
        bins = np.zeros(stop - start, np.uint8)
        for first, entry, table in self._item_tables(start, stop, ["train_frequency", "bin"]):
            low, high = max(start, first), min(stop, first + entry.rows)
            counts, bin_of = (_integers(self._path(entry), table, name) for name in ("train_frequency", "bin"))
            frequency[low - start : high - start] = counts[low - first : high - first].clip(max=_MOST)
            bins[low - start : high - start] = bin_of[low - first : high - first]
        return frequency, bins

    def _item_tables(self, start: int, stop: int, columns: list[str]) -> Iterator[tuple[int, FileEntry, Any]]:
        """For each file that overlaps a range of items: index of its first item, file, columns."""
        if not 0 <= start <= stop <= self.items + 1:
            raise ValueError(f"item range [{start}, {stop}) is outside [0, {self.items + 1})")
        for first, entry in _with_first_index(self.url, self._item_files):
            if max(start, first) >= min(stop, first + entry.rows):
                continue
            table = self._read(entry, ["item_index", *columns])
            index = _integers(self._path(entry), table, "item_index")
            if not np.array_equal(index, np.arange(first, first + entry.rows)):
                raise UserError(f"{self._path(entry)} does not hold items {first} onwards in order: {REBUILD}")
            yield first, entry, table

    def sequences(self, shard: int) -> Histories:
        """Complete histories of one shard.

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

    def gather(self, rows: Ints) -> Histories:
        """Complete histories of the given row numbers (counted through all shards), in that order."""
        shards = np.searchsorted(self._shard_starts, rows, side="right") - 1
        lengths, items = [np.zeros(1, np.int64)], [np.zeros(0, np.int64)]
        splits = [np.zeros((len(SPLIT_COLUMNS), 0), np.int64)]
        for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(shards)) + 1):
            if not len(run):
                continue
            shard = int(shards[run[0]])
            histories = self.sequences(shard)
            local = rows[run] - self._shard_starts[shard]
            starts = histories.offsets[local]
            lengths.append(histories.offsets[local + 1] - starts)
            items.append(histories.items[ranges(starts, lengths[-1])])
            splits.append(np.stack([histories.train[local], histories.valid[local], histories.test[local]]))
        return Histories(np.cumsum(np.concatenate(lengths)), np.concatenate(items), *np.concatenate(splits, axis=1))

    def _read_shard(self, entry: FileEntry) -> Histories:
        path = self._path(entry)
        table = self._read(entry, ["items", *SPLIT_COLUMNS])
        column = table.column("items").combine_chunks()
        if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
            raise UserError(f"{path}: column items is {column.type}, not list<int64>: {REBUILD}")
        offsets = column.offsets.to_numpy(zero_copy_only=False).astype(np.int64)
        values = column.values.to_numpy(zero_copy_only=False)
        if column.null_count or values.dtype != np.int64:
            raise UserError(f"{path}: column items is not list<int64> without nulls: {REBUILD}")
        items = values[offsets[0] : offsets[-1]]
        if len(items) and not 1 <= items.min() <= items.max() <= self.items:
            raise UserError(f"{path} holds an item outside 1..{self.items}: {REBUILD}")
        train, valid, test = (_integers(path, table, name) for name in SPLIT_COLUMNS)
        _check_splits(path, np.diff(offsets), train, valid, test)
        return Histories(offsets - offsets[0], items, train, valid, test)

    def _read(self, entry: FileEntry, columns: list[str]) -> Any:
        path = self._path(entry)
        if not storage.exists(path):
            raise UserError(self._why_missing(path))
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

    def _why_missing(self, path: str) -> str:
        root = versions.root_of(self.url)
        if self.version is None or self.version in versions.published(root):
            return f"{path} is listed in the manifest but missing: build the dataset again"
        return f"{root}: version {self.version} was deleted while it was read: run again, on a version that is kept"

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


def _item_map(url: str, manifest: Manifest, items: int) -> list[list[Any]]:
    entries: list[list[Any]] = manifest.parameters.get("item_map") or [[0, ""]]
    if entries[-1][0] != items:
        raise UserError(f"{url}: the manifest's item_map ends at {entries[-1][0]} items, there are {items}: {REBUILD}")
    return entries


def _check_splits(path: str, lengths: Ints, train: Ints, valid: Ints, test: Ints) -> None:
    """Check that each target has an item before it and is not in the train part."""
    if (train < 0).any() or (train > lengths).any():
        raise UserError(f"{path}: column train is not within 0 .. the history's length: {REBUILD}")
    for name, place in (("valid", valid), ("test", test)):
        if (place < -1).any() or (place == 0).any() or (place >= lengths).any():
            raise UserError(f"{path}: column {name} is neither -1 nor a place after the first item: {REBUILD}")
        if ((place >= 0) & (place < train)).any():
            raise UserError(f"{path}: column {name} names an item of the train part: {REBUILD}")


def _with_first_index(url: str, files: list[FileEntry]) -> Iterator[tuple[int, FileEntry]]:
    expected = 1
    for entry in files:
        if entry.first_index != expected:
            raise UserError(f"{storage.join(url, entry.path)} should start at item {expected}: {REBUILD}")
        yield expected, entry
        expected += entry.rows


def _integers(path: str, table: Any, name: str) -> Ints:
    column = table.column(name)
    if not pa.types.is_integer(column.type) or column.null_count:
        raise UserError(f"{path}: column {name} is not integer without nulls: {REBUILD}")
    return np.asarray(column.to_numpy(), np.int64)
