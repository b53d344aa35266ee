"""Build a new version of the dataset from raw events and a catalogue: items, sequences, events and manifest.

    spark-submit spark_jobs/build_sequences.py --config configs/demo.yaml [section.key=value ...]

A rerun reads only what is new and merges it into the previous version's events, so its
cost grows with the new part. If that is not possible, it reads everything. Both ways
give the same result, on any number of cores: keys decide the order, counts the item
indices and a checksum of the user the shard, never Spark's partitions. A version is
published when it is complete; until then readers see the old one.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from typing import Any

import numpy as np
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from pad_dist import storage
from pad_dist.config import Config, DataConfig
from pad_dist.dataset import versions
from pad_dist.dataset.lineage import lineage_of, settings_of
from pad_dist.dataset.manifest import Manifest, read_manifest, write_manifest
from pad_dist.errors import UserError
from spark_jobs.histories import Rules
from spark_jobs.inputs import absolute
from spark_jobs.items import ItemMap, Keys, by_file, grown_map, known_items, with_bins
from spark_jobs.job import run_job, stop_tasks, task_errors
from spark_jobs.quality import write_quality
from spark_jobs.rerun import Rerun, plan
from spark_jobs.session import persisted
from spark_jobs.shards import Before, write_items, write_shards
from spark_jobs.sources import CORE, REJECTED, Build, Version, catalogue_of, events_of, without
from spark_jobs.target import require_target

_BROADCAST_ITEMS = 4_000_000
"""Up to this many items every executor gets the whole item map, which saves a shuffle of all events."""
_LACKING = {
    "train_users": "no user has two events to train on",
    "valid_users": "no user has a validation target",
    "test_users": "no user has a test target",
}


def build_sequences(config: Config, spark: SparkSession) -> Manifest:
    """Publish a new version of the dataset `config.dataset`, unless nothing has changed; returns the manifest.

    Raises:
        UserError: an input is missing or unreadable, lacks a column, or has more
            rejected rows than `data.max_rejected_share`; no history is left; an input
            belongs to another dataset or changes while it is read; there is no space
            left; or another build has published meanwhile. The current version stays
            current.
    """
    dataset = absolute(config.dataset)
    require_target(dataset, config.data)
    with task_errors(dataset):
        return _next_version(config.data, dataset, spark)


def _next_version(data: DataConfig, dataset: str, spark: SparkSession) -> Manifest:
    before = _current(dataset)
    now = lineage_of(data)
    rerun = plan(before.manifest if before else None, before.id if before else None, now, data.incremental)
    if rerun is None:
        assert before is not None
        print(f"version {before.id} is up to date", flush=True)
        return before.manifest
    print(rerun.why, flush=True)
    version = versions.next_id(dataset)
    url = versions.version_url(dataset, version)
    try:
        with ExitStack() as cached:
            manifest = _build(Build(data, spark, dataset, url, rerun, before, cached))
        if lineage_of(data) != now:
            raise UserError("an input file has changed while it was read: run the build again")
        manifest = manifest.model_copy(update={"lineage": _lineage(now, rerun, version, before)})
        write_quality(spark, url, manifest, before.url if before else None)
        write_manifest(url, manifest)
        versions.publish(dataset, version, before.id if before else None)
    except BaseException:
        _discard(spark, dataset, version)
        raise
    storage.remove(storage.join(dataset, REJECTED))  # the rejected rows of an earlier, refused build
    return manifest


def _discard(spark: SparkSession, dataset: str, version: str) -> None:
    """Delete what a failed build has written; the next build deletes what this one cannot."""
    stop_tasks(spark)
    with suppress(Exception):  # the store may fail here too; the first error is reported
        if version not in versions.published(dataset):
            storage.remove(versions.version_url(dataset, version))


def _current(dataset: str) -> Version | None:
    version = versions.current(dataset)
    if version is None:
        return None
    url = versions.version_url(dataset, version)
    return Version(version, url, read_manifest(url, "pad-dist run --config CONFIG"))


def _lineage(now: dict[str, Any], rerun: Rerun, version: str, before: Version | None) -> dict[str, Any]:
    inputs = now["inputs"]
    if rerun.grow and before is not None:
        # Files that are gone from the input count too: the dataset keeps their events.
        inputs = inputs | {"interactions": before.manifest.lineage["inputs"]["interactions"] | inputs["interactions"]}
    created = datetime.now(UTC).isoformat(timespec="seconds")
    grown_from = before.id if before else None
    return now | {"inputs": inputs, "version": version, "grown_from": grown_from, "created": created}


def _build(build: Build) -> Manifest:
    """Write every file of the version; returns the manifest, without lineage."""
    data, cached = build.data, build.cached
    events, seen, event_counts, event_rejects = events_of(build)
    listed, item_counts, item_rejects = catalogue_of(build)
    history = build.before.manifest.parameters["item_map"] if build.before else []
    keys = without(_wanted(data, seen, listed), "item_key", build.erased_items)
    item_map = grown_map(_known(build, build.erased_items), history, keys, cached)

    before = _before(build, build.erased_items, item_map)
    by_shard = _by_shard(build, events, item_map)
    files, counts, counted = write_shards(by_shard, build.url, before, build.erased_users, Rules.of(data), cached)
    if not counts.get("interactions"):
        raise UserError(_why_empty(build, events, event_counts, event_rejects.total()))
    for name, lacking in _LACKING.items():
        if not counts[name]:
            raise UserError(f"{lacking}: check data.split and data.min_interactions")
    rows, cuts = with_bins(persisted(_with_frequency(data, item_map, counted), cached), cached)
    item_files, untitled = write_items(by_file(rows, item_map.items), build.url)
    storage.remove(storage.join(build.url, CORE))
    _sweep(build.url)
    return Manifest(
        counts={
            "users": sum(file.rows for file in files["sequences"]),
            "items": item_map.items,
            **counts,
            **untitled,
            **event_counts,
            **item_counts,
        },
        parameters=settings_of(data) | {"bin_cuts": cuts, "item_map": item_map.history},
        groups={"items": item_files, **files},
        rejected=dict(sorted((event_rejects + item_rejects).items())),
    )


def _sweep(url: str) -> None:
    """Delete half-written files of tasks that died with their worker (see `storage.atomic_writer`)."""
    fs, path = storage.filesystem(url)
    for file in fs.find(path):
        if str(file).endswith(".tmp"):
            fs.rm_file(file)


def _wanted(data: DataConfig, seen: DataFrame, listed: DataFrame) -> DataFrame:
    """The `keys` for `items.grown_map`: items seen in events and, without a k-core, those of the catalogue."""
    in_core = bool(data.min_item_interactions)
    rows = seen.select("item_key", F.lit(None).cast("string").alias("text"), F.lit(True).alias("wanted")).unionByName(
        listed.withColumn("wanted", F.lit(not in_core))
    )
    return rows.groupBy("item_key").agg(F.max("text").alias("text"), F.max("wanted").alias("wanted"))


def _known(build: Build, erased: list[str]) -> DataFrame:
    """Items of the previous version (item_key, item_index, text); erased ones lose key and text."""
    if build.before is None:
        return build.spark.createDataFrame([], "item_key string, item_index long, text string")
    rows = known_items(build.spark, build.before.url, build.before.manifest.groups["items"])
    if erased:
        gone = build.spark.createDataFrame([(key, True) for key in erased], "item_key string, gone boolean")
        rows = rows.join(F.broadcast(gone), "item_key", "left").select(
            F.when(F.col("gone"), "").otherwise(F.col("item_key")).alias("item_key"),
            "item_index",
            F.when(F.col("gone").isNull(), F.col("text")).alias("text"),
        )
    return rows


def _before(build: Build, erased: list[str], item_map: ItemMap) -> Before | None:
    """The events to start from; None if the build reads every event again."""
    if not build.rerun.grow or build.before is None:
        return None
    version = build.before
    keys = Keys(version.url, version.manifest.groups["items"], item_map.added)
    # Includes items that an earlier version erased: they have no events any more.
    gone = item_map.rows.where(F.col("item_key") == "").select("item_index").collect() if erased else []
    return Before(version.url, version.manifest.groups["events"], keys, np.array([row[0] for row in gone], np.int64))


def _by_shard(build: Build, events: DataFrame, item_map: ItemMap) -> DataFrame:
    """The new events with item_index, one sorted partition per shard; each has one more row, without a user."""
    indices = item_map.rows.select("item_key", "item_index")
    if item_map.items <= _BROADCAST_ITEMS:
        indices = F.broadcast(indices)
    rows = events.join(indices, "item_key").withColumn("shard", shard_of(F.col("user_key"), build.data.shards))
    all_shards = build.spark.range(build.data.shards).select(F.col("id").cast("int").alias("shard"))
    return (
        rows.unionByName(all_shards, allowMissingColumns=True)
        .repartitionById(build.data.shards, F.col("shard"))
        .sortWithinPartitions("user_key", "time", "item_key")
    )


def _with_frequency(data: DataConfig, item_map: ItemMap, counted: DataFrame) -> DataFrame:
    """Every item: item_key, item_index, text (or null), train_frequency, active."""
    frequency = counted.groupBy("item_index").agg(F.sum("train_frequency").alias("train_frequency"))
    active = F.col("item_key") != ""
    if data.min_item_interactions:
        active &= F.coalesce("wanted", F.lit(False))
    return item_map.rows.join(frequency, "item_index", "left").select(
        "item_key",
        "item_index",
        "text",
        F.coalesce("train_frequency", F.lit(0)).alias("train_frequency"),
        active.alias("active"),
    )


def shard_of(user_key: Column, shards: int) -> Column:
    """The shard of a user: CRC-32 of its UTF-8 bytes modulo the number of shards."""
    return (F.crc32(user_key) % shards).cast("int")


def _why_empty(build: Build, events: DataFrame, counts: dict[str, int], rejected: int) -> str:
    data = build.data
    text = (
        f"no history is left of {data.interactions}: {counts['raw_events']} events read, {rejected} of them unreadable"
    )
    left = counts["raw_events"] - rejected
    if left and data.min_rating is not None:
        left -= counts["below_min_rating"]
        text += f", {left} left by data.min_rating={data.min_rating:g}"
    if left and data.min_item_interactions:
        least = f"data.min_interactions={data.min_interactions} and {data.min_item_interactions=}"
        text += f", 0 left by the k-core of {least}"
    elif left:
        longest = events.groupBy("user_key").count().agg(F.max("count")).collect()[0][0] or 0
        text += f", 0 left by data.min_interactions={data.min_interactions} (the longest history has {longest} events)"
    return text


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    run_job("build_sequences", "Build the dataset: items, sequence shards and manifest.", _build_and_tell, arguments)


def _build_and_tell(config: Config, spark: SparkSession) -> str:
    manifest = build_sequences(config, spark)
    counts = ", ".join(f"{name} {count:,}" for name, count in manifest.counts.items())
    return f"{config.dataset}: {counts} (content {manifest.content_hash()[:12]})"


if __name__ == "__main__":
    main()
