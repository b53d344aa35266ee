"""The k-core of the events: every user and item left has enough of them (docs/method.md, "Data and split")."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pad_dist import storage
from spark_jobs.inputs import absolute


def core(events: DataFrame, min_user: int, min_item: int, scratch: str) -> DataFrame:
    """Drop users and items with too few events until all that remain have enough, in whatever order.

    Each round is written to files, so that a round costs one pass and a lost worker costs one round.

    Args:
        events: (user_key, item_key, time); repeats count once.
        scratch: directory for the rounds.
    """
    spark = events.sparkSession
    events = events.distinct()
    number = 0
    while True:
        round_url = absolute(storage.join(scratch, f"round-{number:03d}"))
        events.write.parquet(round_url)
        if number:
            storage.remove(storage.join(scratch, f"round-{number - 1:03d}"))
        events = spark.read.schema(events.schema).parquet(round_url)
        rare = [
            events.groupBy(key).count().where(F.col("count") < least).select(key)
            for key, least in (("user_key", min_user), ("item_key", min_item))
        ]
        if all(keys.isEmpty() for keys in rare):
            return events
        for keys in rare:
            events = events.join(keys, keys.columns[0], "left_anti")
        number += 1
