"""Small inputs in every format, and what the reader makes of them."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark.sql import SparkSession

from pad_dist.config import DataConfig
from pad_dist.dataset.lineage import input_files
from spark_jobs.inputs import read_catalogue, read_events, reading

ROWS = [("u1", "i1", 1.5e9), ("7", 'a "b", c\\', 2.0), ("ü", " i 3 ", 0.25)]


def events_at(place: Path, **data: Any) -> DataConfig:
    columns = {"user": "who", "item": "what", "time": "when"} | data.pop("columns", {})
    return DataConfig(interactions=str(place), columns=columns, **data)


def items_at(place: Path, text: Any = "title", **data: Any) -> DataConfig:
    return DataConfig(items=str(place), columns={"item_key": "key", "text": text}, **data)


def events_of(spark: SparkSession, data: DataConfig) -> list[tuple[Any, ...]]:
    with reading(data.interactions):
        frame = read_events(spark, data, list(input_files(data.interactions)))
        rows = frame.where("rejected is null").drop("rejected", "row").collect()
    return sorted(tuple(row) for row in rows)


def reasons_of(spark: SparkSession, data: DataConfig) -> list[str]:
    frame = read_events(spark, data, list(input_files(data.interactions)))
    return sorted(row.rejected for row in frame.where("rejected is not null").select("rejected").collect())


def texts_of(spark: SparkSession, data: DataConfig) -> dict[str, str | None]:
    frame = read_catalogue(spark, data, list(input_files(data.items)))
    return {row.item_key: row.text for row in frame.collect()}


def as_csv(rows: list[tuple[str, str, float]]) -> str:
    lines = [f'{n},{who},"{what.replace(chr(34), chr(34) * 2)}",{when}' for n, (who, what, when) in enumerate(rows)]
    return "\n".join(["n,who,what,when", *lines]) + "\n"


def as_json(rows: list[tuple[str, str, float]]) -> str:
    return "".join(
        json.dumps({"who": int(who) if who.isdigit() else who, "what": what, "when": when}) + "\n"
        for who, what, when in rows
    )


def as_table(rows: list[tuple[str, str, float]]) -> pa.Table:
    return pa.table(dict(zip(("who", "what", "when"), zip(*rows, strict=True), strict=True)))
