"""Raw events and a catalogue in; items, sequence shards and the manifest out.

    spark-submit spark_jobs/build_sequences.py --config configs/demo.yaml [section.key=value ...]

The same input gives the same bytes on any number of cores: order comes from keys,
places from counts and shards from a checksum of the user, never from Spark's
partitions. The dataset is built beside its place and moved in when it is whole.
"""

from __future__ import annotations

from contextlib import ExitStack

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from pad_dist import storage
from pad_dist.config import Config, DataConfig
from pad_dist.data.manifest import Manifest, write_manifest
from pad_dist.errors import UserError
from spark_jobs.bins import bin_cuts, cut_frequencies, first_ranks
from spark_jobs.inputs import Kind, absolute, admit, read_rows
from spark_jobs.job import run_job
from spark_jobs.shards import write_items, write_sequences
from spark_jobs.target import require_target

ITEMS_PER_FILE = 262_144

# Where a dataset's content comes from or how it is computed, not what it is.
_NOT_CONTENT = {"interactions", "items", "max_rejected_share", "spark_master", "spark_conf"}


def build_sequences(config: Config, spark: SparkSession) -> Manifest:
    """Build the dataset `config.dataset` from `config.data` and return its manifest.

    Raises:
        UserError: input missing, unreadable, lacking a column, or with more
            rejected rows than `data.max_rejected_share`; or nothing left of it; or
            a build that would replace what is not of a dataset.
            What was at `config.dataset` stays, but for its rejected/ rows.
    """
    inputs = {"data.interactions": config.data.interactions, "data.items": config.data.items}
    for setting, url in inputs.items():
        if not url:
            raise UserError(f"{setting} is not set: give the URL of a CSV, JSON lines or Parquet input")
    dataset = absolute(config.dataset)
    staging = f"{dataset.rstrip('/')}.staging"
    require_target(dataset, staging, inputs)
    storage.remove(staging)
    try:
        with ExitStack() as cached:
            manifest = _build(config.data, spark, dataset, staging, cached)
        _publish(manifest, staging, dataset)
    finally:
        storage.remove(staging)
    return manifest


def _build(data: DataConfig, spark: SparkSession, dataset: str, staging: str, cached: ExitStack) -> Manifest:
    columns = data.columns
    fields: dict[str, tuple[str, Kind]] = {
        "user_key": (columns.user, "key"),
        "item_key": (columns.item, "key"),
        "time": (columns.time, "number"),
    }
    if data.min_rating is not None and columns.rating is not None:
        fields["rating"] = (columns.rating, "number")
    titled: dict[str, tuple[str, Kind]] = {"item_key": (columns.item_key, "key"), "text": (columns.text, "text")}
    raw_events = read_rows(spark, data.interactions, fields)
    raw_items = read_rows(spark, data.items, titled, multi_line=True)
    aside = storage.join(dataset, "rejected")
    events = admit(raw_events, data.interactions, "interactions", data.max_rejected_share, aside)
    catalogue = admit(raw_items, data.items, "items", data.max_rejected_share, aside)

    kept = _cached(histories(events.rows, data), cached)
    if kept.isEmpty():
        raise UserError(_why_empty(events.rows, events.read, events.rejected.total(), data))
    items = _indexed(_cached(_catalogue(catalogue.rows, kept), cached))
    histogram, duplicates = _popularity(items)
    cuts = bin_cuts(histogram)
    ranks = _ranks_by_file(items, histogram, cuts)
    by_file = items.repartitionById(len(ranks), F.col("file")).sortWithinPartitions("item_index")
    item_files, untitled = write_items(by_file, staging, ranks, cuts)

    by_shard = (
        kept.join(items.select("item_key", "item_index"), "item_key")
        .repartitionById(data.shards, shard_of(F.col("user_key"), data.shards))
        .sortWithinPartitions("user_key", "position")
    )
    sequence_files, interactions = write_sequences(by_shard, staging)
    return Manifest(
        counts={
            "users": sum(file.rows for file in sequence_files),
            "items": sum(file.rows for file in item_files),
            "interactions": interactions,
            "raw_events": events.read,
            "items_without_text": untitled,
            "duplicate_item_rows": duplicates,
        },
        parameters=data.model_dump(mode="json", exclude=_NOT_CONTENT) | {"split": "leave_one_out", "bin_cuts": cuts},
        groups={"items": item_files, "sequences": sequence_files},
        rejected=dict(sorted((events.rejected + catalogue.rejected).items())),
    )


def shard_of(user_key: Column, shards: int) -> Column:
    """The shard of a user: CRC-32 of its UTF-8 bytes modulo the number of shards."""
    return (F.crc32(user_key) % shards).cast("int")


def histories(events: DataFrame, data: DataConfig) -> DataFrame:
    """Kept events: user_key, item_key, position (order in the history), train (not one of the last two)."""
    if data.min_rating is not None:
        events = events.where(F.col("rating") >= data.min_rating)
    user = Window.partitionBy("user_key")
    length = F.count("*").over(user)
    # Equal times are ordered by item, as the order of the input is no order; position is then unique.
    position = F.row_number().over(user.orderBy("time", "item_key"))
    events = events.select("user_key", "item_key", position.alias("position"), length.alias("length"))
    kept = F.col("length") >= data.min_interactions
    if data.max_history is not None and data.keep_last is not None:
        kept &= (F.col("length") <= data.max_history) | (F.col("position") > F.col("length") - data.keep_last)
    train = F.col("position") <= F.col("length") - 2
    return events.where(kept).select("user_key", "item_key", "position", train.alias("train"))


def _catalogue(listed: DataFrame, kept: DataFrame) -> DataFrame:
    """Every listed or seen item once, in item_key order: item_key, text (or null), duplicates, train_frequency."""
    # Of several rows of one item the first text in sorted order stays; a blank one never wins over a text.
    text = F.min(F.when(F.trim("text") != "", F.col("text"))).alias("text")
    once = listed.groupBy("item_key").agg(text, (F.count("*") - 1).alias("duplicates"))
    seen = kept.groupBy("item_key").agg(F.sum(F.col("train").cast("long")).alias("train_frequency"))
    return once.join(seen, "item_key", "full").fillna(0, ["duplicates", "train_frequency"]).orderBy("item_key")


def _indexed(items: DataFrame) -> DataFrame:
    """Adds item_index (1..N in the order of `items`, which must be cached) and its file."""
    partition = F.spark_partition_id()
    counts = {row.partition: row["count"] for row in items.groupBy(partition.alias("partition")).count().collect()}
    offsets = [0]
    for number in range(max(counts)):
        offsets.append(offsets[-1] + counts.get(number, 0))
    # The lower 33 bits of this id are the row's place in its partition.
    place = F.monotonically_increasing_id().bitwiseAND((1 << 33) - 1)
    offset = F.array(*[F.lit(offset).cast("long") for offset in offsets])[partition]
    indexed = items.withColumn("item_index", offset + place + 1)
    return indexed.withColumn("file", F.floor((F.col("item_index") - 1) / ITEMS_PER_FILE).cast("int"))


def _popularity(items: DataFrame) -> tuple[dict[int, int], int]:
    """Histogram of the train frequencies, and the number of duplicate catalogue rows."""
    rows = items.groupBy("train_frequency").agg(F.count("*"), F.sum("duplicates")).collect()
    return {frequency: count for frequency, count, _ in rows}, sum(duplicates for _, _, duplicates in rows)


def _ranks_by_file(items: DataFrame, histogram: dict[int, int], cuts: list[int]) -> list[dict[int, int]]:
    """Per file: train frequency -> popularity rank of its first item there, exact where a cut divides equals."""
    divided = items.where(F.col("train_frequency").isin(cut_frequencies(histogram, cuts)))
    counts: dict[int, dict[int, int]] = {}
    for row in divided.groupBy("file", "train_frequency").count().collect():
        counts.setdefault(row.file, {})[row.train_frequency] = row["count"]
    files = -(-sum(histogram.values()) // ITEMS_PER_FILE)
    ranks = [first_ranks(histogram)]
    for file in range(files - 1):
        ranks.append(ranks[-1] | {f: ranks[-1][f] + items for f, items in counts.get(file, {}).items()})
    return ranks


def _cached(frame: DataFrame, cached: ExitStack) -> DataFrame:
    cached.callback(frame.unpersist)
    return frame.persist()


def _why_empty(events: DataFrame, read: int, rejected: int, data: DataConfig) -> str:
    left = read - rejected
    text = f"no history is left of {data.interactions}: {read} events read, {rejected} of them unreadable"
    if left and data.min_rating is not None:
        events = events.where(F.col("rating") >= data.min_rating)
        left = events.count()
        text += f", {left} left by data.min_rating={data.min_rating:g}"
    if left:
        longest = events.groupBy("user_key").count().agg(F.max("count")).collect()[0][0]
        text += f", 0 left by data.min_interactions={data.min_interactions} (the longest history has {longest} events)"
    return text


def _publish(manifest: Manifest, staging: str, dataset: str) -> None:
    """Move the built directories into place; the dataset has no manifest until all are."""
    storage.remove(storage.join(dataset, "manifest.json"))
    fs, place = storage.filesystem(dataset)
    fs.makedirs(place, exist_ok=True)
    for name in manifest.groups:
        storage.remove(storage.join(dataset, name))
        fs.mv(f"{storage.filesystem(staging)[1]}/{name}", f"{place}/{name}", recursive=True)
    write_manifest(dataset, manifest)


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    run_job("build_sequences", "Build the dataset: items, sequence shards and manifest.", _build_and_tell, arguments)


def _build_and_tell(config: Config, spark: SparkSession) -> str:
    manifest = build_sequences(config, spark)
    counts = ", ".join(f"{name} {count:,}" for name, count in manifest.counts.items())
    return f"{config.dataset}: {counts} (content {manifest.content_hash()[:12]})"


if __name__ == "__main__":
    main()
