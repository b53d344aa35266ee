"""The item map: known items keep their index, new ones follow in the order of their keys."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from pad_dist import storage
from pad_dist.dataset.manifest import FileEntry, verify_file
from spark_jobs.bins import bin_cuts
from spark_jobs.histories import Ints
from spark_jobs.session import persisted

ITEMS_PER_FILE = 262_144
_MAP = "item_key string, item_index long, text string"


@dataclass(frozen=True)
class ItemMap:
    """Every item of a version.

    Attributes:
        rows: item_key ("" if erased), item_index, text (null: it has none), wanted (null: not in `grown_map`'s keys).
        items: number of items.
        added: (item_key, item_index) of the items that this version adds.
        history: [[items, digest], ...] of the manifest.
    """

    rows: DataFrame
    items: int
    added: DataFrame
    history: list[list[Any]]


def known_items(spark: SparkSession, root: str, files: list[FileEntry]) -> DataFrame:
    """Rows of a version's item files: item_key, item_index, text (null if it is only the key).

    Reads through fsspec, as the writer does: Spark may have another name for the same store.
    """

    def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for number in (int(n) for batch in batches for n in batch.column("id").to_pylist()):
            verify_file(root, files[number])
            fs, path = storage.filesystem(storage.join(root, files[number].path))
            with fs.open(path, "rb") as file:
                yield from pq.ParquetFile(file).iter_batches(columns=["item_key", "item_index", "text"])

    rows = spark.range(0, len(files), 1, max(1, len(files))).mapInArrow(read, _MAP)
    return rows.withColumn("text", F.when(F.col("text") != F.col("item_key"), F.col("text")))


def grown_map(known: DataFrame, history: list[list[Any]], keys: DataFrame, cached: ExitStack) -> ItemMap:
    """Append the wanted `keys` that the item map `known`, of that history, lacks.

    Args:
        known: item_key, item_index, text.
        keys: item_key (distinct), text (if not null, it replaces the known one), wanted (false: only to update a text).
    """
    items, last = history[-1] if history else (0, "")
    text = F.coalesce(keys["text"], known["text"]).alias("text")
    rows = persisted(known.join(keys, "item_key", "full").select("item_key", "item_index", text, "wanted"), cached)
    lacking = rows.where("item_index IS NULL AND wanted").select("item_key", "text", "wanted").orderBy("item_key")
    added = _numbered(persisted(lacking, cached), items, "item_index")
    count, digest = added.agg(
        F.count("*"), F.sum(F.xxhash64("item_index", "item_key").cast("decimal(38,0)"))
    ).collect()[0]
    if count:
        total = hashlib.sha256(f"{last} {items} {count} {digest}".encode()).hexdigest()
        history = [*history, [items + count, total[:16]]]
    return ItemMap(rows.where("item_index IS NOT NULL").unionByName(added), items + count, added, history)


def with_bins(items: DataFrame, cached: ExitStack) -> tuple[DataFrame, list[int]]:
    """Add column bin, 0 for inactive items; also returns the cuts of the popularity order (`bins.bin_cuts`).

    Of items with equal frequency the lower key counts as more popular.
    """
    active = items.where("active")
    cuts = bin_cuts({row[0]: row[1] for row in active.groupBy("train_frequency").agg(F.count("*")).collect()})
    ordered = persisted(active.orderBy(F.desc("train_frequency"), "item_key"), cached)
    position = F.col("position") - 1
    number = sum(((position >= cut).cast("int") for cut in cuts[1:-1]), F.lit(1))
    binned = _numbered(ordered, 0, "position").withColumn("bin", number).drop("position")
    return binned.unionByName(items.where(~F.col("active")).withColumn("bin", F.lit(0))), cuts


def by_file(items: DataFrame, count: int) -> DataFrame:
    """The items in files of ITEMS_PER_FILE, one partition each, in the order of their index."""
    file = F.floor((F.col("item_index") - 1) / ITEMS_PER_FILE).cast("int")
    return items.repartitionById(-(-count // ITEMS_PER_FILE), file).sortWithinPartitions("item_index")


class Keys:
    """item_index -> item_key in an executor: a version's items from its files, added items from memory."""

    def __init__(self, root: str, files: list[FileEntry], added: DataFrame) -> None:
        self._root, self._files = root, files
        rows = added.select("item_index", "item_key").toArrow().combine_chunks()
        self._added = dict(zip(rows["item_index"].to_pylist(), rows["item_key"].to_pylist(), strict=True))

    def __call__(self, items: Ints) -> pa.Array:
        """Keys of `items` [n], in that order; items may repeat."""
        distinct, places = np.unique(items, return_inverse=True)
        keys = []
        start = 0
        for file in self._files:
            first = file.first_index or 1
            stop = int(np.searchsorted(distinct, first + file.rows))
            if stop > start:
                keys.append(_keys_in(self._root, file).take(pa.array(distinct[start:stop] - first)))
            start = stop
        keys.append(pa.array([self._added[item] for item in distinct[start:].tolist()], pa.string()))
        return pa.concat_arrays(keys).take(pa.array(places))


@lru_cache(maxsize=16)
def _keys_in(root: str, file: FileEntry) -> pa.Array:
    fs, path = storage.filesystem(storage.join(root, file.path))
    with fs.open(path, "rb") as opened:
        return pq.read_table(opened, columns=["item_key"])["item_key"].combine_chunks()


def _numbered(ordered: DataFrame, offset: int, name: str) -> DataFrame:
    """Add column `name`: offset + 1, offset + 2, ... in the order of `ordered`, which must be persisted."""
    partition = F.spark_partition_id()
    counts = {row.partition: row["count"] for row in ordered.groupBy(partition.alias("partition")).count().collect()}
    offsets = [offset]
    for number in range(max(counts, default=0)):
        offsets.append(offsets[-1] + counts.get(number, 0))
    # The lower 33 bits of this id are the row's place in its partition.
    place = F.monotonically_increasing_id().bitwiseAND((1 << 33) - 1)
    before = F.array(*[F.lit(offset).cast("long") for offset in offsets])[partition]
    return ordered.withColumn(name, before + place + 1)
