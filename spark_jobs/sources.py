"""What a build reads: new events, the catalogue and the keys to erase, each counted and checked."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from pad_dist import storage
from pad_dist.config import DataConfig
from pad_dist.dataset.manifest import Manifest
from spark_jobs.core import core
from spark_jobs.inputs import check_rejected, read_catalogue, read_events, read_keys, reading, set_aside
from spark_jobs.rerun import Rerun
from spark_jobs.session import persisted

CORE = "core"
"""Scratch directory of a build for the rounds of the k-core."""
REJECTED = "rejected"
"""Directory of rejected rows, in the version; in the dataset's root if there were too many of them."""
_LOW = "\0rating below data.min_rating"


@dataclass(frozen=True)
class Version:
    """A published version."""

    id: str
    url: str
    manifest: Manifest


@dataclass(frozen=True)
class Build:
    """One build: what it reads, where it writes (`url`, the new version's directory)."""

    data: DataConfig
    spark: SparkSession
    dataset: str
    url: str
    rerun: Rerun
    before: Version | None
    cached: ExitStack

    @cached_property
    def erased_users(self) -> list[str]:
        """Keys of users to forget."""
        return _keys(self.spark, self.data.erase_users, self.data.columns.user)

    @cached_property
    def erased_items(self) -> list[str]:
        """Keys of items to forget."""
        return _keys(self.spark, self.data.erase_items, self.data.columns.item_key)


def events_of(build: Build) -> tuple[DataFrame, DataFrame, dict[str, int], Counter[str]]:
    """Usable new events (user_key, item_key, time), the item keys in them, counts and rejects of all events so far."""
    data, files = build.data, build.rerun.events
    if files or not build.rerun.grow:
        rows = read_events(build.spark, data, files)
    else:
        rows = build.spark.createDataFrame(
            [], "user_key string, item_key string, time double, rating double, rejected string, row string"
        )
    state = F.col("rejected")
    if data.min_rating is not None:
        state = F.coalesce(state, F.when(F.col("rating") < data.min_rating, _LOW))
    rows = rows.withColumn("state", state)
    usable = F.col("state").isNull()
    tally = rows.groupBy("state", F.when(usable, F.col("item_key")).alias("item_key")).agg(F.count("*").alias("rows"))
    tally = persisted(tally, build.cached)
    with reading(data.interactions):
        by_reason = Counter(
            {row.state: row["rows"] for row in tally.groupBy("state").agg(F.sum("rows").alias("rows")).collect()}
        )
    read, low = by_reason.total(), by_reason.pop(_LOW, 0)
    by_reason.pop(None, 0)
    _set_aside(build, rows, "interactions", by_reason, read)
    counts, rejects = Counter(raw_events=read, below_min_rating=low), Counter(_named("interactions", by_reason))
    if build.rerun.grow and build.before is not None:
        old = build.before.manifest
        counts.update({name: old.counts[name] for name in counts})
        rejects.update({reason: n for reason, n in old.rejected.items() if reason.startswith("interactions: ")})
    events = rows.where(usable).select("user_key", "item_key", "time")
    seen = tally.where(usable).select("item_key")
    if data.min_item_interactions:
        events = core(events, data.min_interactions, data.min_item_interactions, storage.join(build.url, CORE))
        seen = persisted(events.select("item_key").distinct(), build.cached)
    return events, seen, dict(counts), rejects


def catalogue_of(build: Build) -> tuple[DataFrame, dict[str, int], Counter[str]]:
    """Each item of the catalogue files read now, once (item_key, text or null); the catalogue's counts and rejects."""
    data, files = build.data, build.rerun.catalogue
    rows = read_catalogue(build.spark, data, files)  # raises if the catalogue is gone, even if no file is read again
    if not files:
        assert build.before is not None
        old = build.before.manifest
        kept = {reason: n for reason, n in old.rejected.items() if reason.startswith("items: ")}
        empty = build.spark.createDataFrame([], "item_key string, text string")
        return empty, {"duplicate_item_rows": old.counts["duplicate_item_rows"]}, Counter(kept)
    # An item with several rows keeps the first text in sorted order; a blank one never wins over a text.
    text = F.min(F.when(F.trim("text") != "", F.col("text"))).alias("text")
    key = F.when(F.col("rejected").isNull(), F.col("item_key")).alias("item_key")
    once = persisted(rows.groupBy("rejected", key).agg(text, F.count("*").alias("rows")), build.cached)
    with reading(data.items):
        totals = once.groupBy("rejected").agg(F.sum("rows").alias("rows"), F.count("*").alias("keys")).collect()
    by_reason = Counter({row.rejected: row["rows"] for row in totals})
    read, usable = by_reason.total(), by_reason.pop(None, 0)
    _set_aside(build, rows, "items", by_reason, read)
    distinct = sum(row["keys"] for row in totals if row.rejected is None)
    listed = once.where(F.col("rejected").isNull()).select("item_key", "text")
    return listed, {"duplicate_item_rows": usable - distinct}, Counter(_named("items", by_reason))


def _set_aside(build: Build, rows: DataFrame, role: str, rejected: Counter[str], read: int) -> None:
    """Write rejected rows into the version; if there are too many, into the dataset's root, and refuse.

    Rows of erased users and items are counted, but not written if their key can be read.
    """
    if not rejected:
        return
    data, url = build.data, getattr(build.data, role)
    many = rejected.total() > data.max_rejected_share * read
    folder = storage.join(build.dataset if many else build.url, REJECTED)
    for column, keys in (("user_key", build.erased_users), ("item_key", build.erased_items)):
        if column in rows.columns:
            rows = without(rows, column, keys)
    set_aside(rows, role, folder)
    check_rejected(rejected, read, url, data.max_rejected_share, storage.join(folder, f"{role}.jsonl"))


def without(rows: DataFrame, column: str, keys: list[str]) -> DataFrame:
    """The rows whose `column` is none of `keys`."""
    if not keys:
        return rows
    gone = rows.sparkSession.createDataFrame([(key,) for key in keys], f"{column} string")
    return rows.join(F.broadcast(gone), column, "left_anti")


def _named(role: str, rejected: Counter[str]) -> dict[str, int]:
    return {f"{role}: {reason}": count for reason, count in rejected.items()}


def _keys(spark: SparkSession, url: str, column: str) -> list[str]:
    """Keys of an erasure list, each once; none if `url` is not set."""
    if not url:
        return []
    with reading(url):
        return sorted({row.key for row in read_keys(spark, url, column).collect()})
