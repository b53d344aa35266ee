"""Events, catalogue and erasure lists as typed columns, whatever files they come in.

An unusable row is kept, with the reason in column `rejected`, so that the caller
can count it and set it aside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Literal

from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from pad_dist import storage
from pad_dist.config import DataConfig, InputFormat
from pad_dist.dataset.lineage import input_files
from pad_dist.errors import UserError
from spark_jobs.damage import absolute, missing, reading
from spark_jobs.formats import CORRUPT, column, load
from spark_jobs.item_text import joined_text, text_columns

__all__ = ["absolute", "check_rejected", "read_catalogue", "read_events", "read_keys", "reading", "set_aside"]

MOST_SET_ASIDE = 10_000
"""Rejected rows written out per input; all are counted."""

_UNITS: dict[Literal["s", "ms", "us"], float] = {"s": 1.0, "ms": 1e3, "us": 1e6}
_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds"}
_FAR = 1e11
"""Seconds to the year 5138, milliseconds to 1973: no unit has both a smaller and a larger time of our age."""

_DATES = (T.TimestampType, T.TimestampNTZType, T.DateType)
_KEYS = (T.StringType, T.IntegralType, T.BinaryType)
_NUMBERS = (T.NumericType, T.StringType)

Fields = dict[str, Column]
Reasons = list[tuple[Column, str]]


def read_events(spark: SparkSession, data: DataConfig, files: Sequence[str]) -> DataFrame:
    """One row per event: user_key, item_key, time (s), rating (only with `data.min_rating`), rejected, row.

    `rejected` is the reason or null, `row` the source row as text. Spark computes
    only the columns that the caller selects.

    Args:
        files: those of `pad_dist.dataset.lineage.input_files(data.interactions)` to read.

    Raises:
        UserError: see `spark_jobs.formats.load`; or a column has the wrong type.
    """
    url, columns = data.interactions, data.columns
    rating = columns.rating if data.min_rating is not None else None
    needed = [columns.user, columns.item, columns.time, *([rating] if rating else [])]
    if not _any(url, files):
        return spark.createDataFrame(
            [], f"user_key string, item_key string, time double, {'rating double, ' if rating else ''}{_LAST}"
        )
    if data.time_format is not None:
        _check_time_format(spark, data.time_format)
    with reading(url):
        frames = []
        for frame in load(spark, url, files, data.events_format, needed):
            user, item = (_key(frame, name, url) for name in (columns.user, columns.item))
            time, misread = _time(frame, data)
            fields = {"user_key": user, "item_key": item, "time": time}
            reasons = [*_blanks([columns.user, columns.item, columns.time]), *misread]
            if rating:
                fields["rating"] = _number(frame, rating, url)
                reasons += [*_blanks([rating]), (_unusable(fields["rating"]), f"{rating} is not a number")]
            rows = _rows(frame, fields, reasons)
            frames.append(_one_per_entry(rows, columns.item_pattern) if columns.item_pattern else rows)
    return reduce(DataFrame.unionByName, frames)


def read_catalogue(spark: SparkSession, data: DataConfig, files: Sequence[str]) -> DataFrame:
    """One row per catalogue row: item_key, text (raw; null if it has none), rejected, row.

    Args:
        files: those of `pad_dist.dataset.lineage.input_files(data.items)` to read.

    Raises:
        UserError: as `read_events`.
    """
    url, key = data.items, data.columns.item_key
    if not _any(url, files):
        return spark.createDataFrame([], f"item_key string, text string, {_LAST}")
    texts = text_columns(data.columns.text)
    with reading(url):
        frames = []
        for frame in load(spark, url, files, data.items_format, [key], texts, multi_line=True):
            values = {name: _string(frame, name) for name in texts}
            fields = {"item_key": _key(frame, key, url), "text": joined_text(data.columns.text, values)}
            frames.append(_rows(frame, fields, _blanks([key])))
    return reduce(DataFrame.unionByName, frames)


def read_keys(spark: SparkSession, url: str, name: str) -> DataFrame:
    """The keys of an erasure list, column `name` of CSV, JSON lines or Parquet, as `key`, without blank ones.

    Raises:
        UserError: as `read_events`; or a line is corrupt, so its key would not be erased.
    """
    files = list(input_files(url))
    if not _any(url, files):
        raise missing(url)
    with reading(url):
        frames = [
            _rows(frame, {"key": _key(frame, name, url)}, [])
            for frame in load(spark, url, files, InputFormat(), [name])
        ]
        rows = reduce(DataFrame.unionByName, frames)
        corrupt = rows.where(F.col("rejected").isNotNull()).select("row").limit(1).collect()
    if corrupt:
        raise UserError(f"{url} holds a line that cannot be read, so its key would not be erased: {corrupt[0].row!r}")
    return rows.where(F.trim("key") != "").select("key")


def check_rejected(counts: Mapping[str, int], read: int, url: str, max_share: float, where: str) -> None:
    """Fail when too much of an input is unusable.

    Args:
        counts: reason -> rejected rows, of `read` rows in all.
        where: the file that `set_aside` wrote.

    Raises:
        UserError: more than `max_share` of the rows is rejected.
    """
    rejected = sum(counts.values())
    if rejected > max_share * read:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(counts.items()))
        raise UserError(
            f"{rejected} of {read} rows ({rejected / read:.1%}) of {url} are unreadable ({reasons}), more than "
            f"data.max_rejected_share={max_share:g} allows: see {where}, mend the input or raise the share"
        )


def set_aside(rows: DataFrame, role: str, folder: str) -> None:
    """Write rejected rows as JSON lines to <folder>/<role>.jsonl; no file if there are none.

    Writes at most MOST_SET_ASIDE rows, the first in order of reason and row.
    """
    bad = rows.where(F.col("rejected").isNotNull()).select("rejected", "row").orderBy("rejected", "row")
    lines = [json.dumps({"reason": row.rejected, "row": row.row}) for row in bad.limit(MOST_SET_ASIDE).collect()]
    if lines:
        storage.write_bytes(storage.join(folder, f"{role}.jsonl"), ("\n".join(lines) + "\n").encode())


_LAST = "rejected string, row string"


def _any(url: str, files: Sequence[str]) -> bool:
    """Whether there is a file to read; if not, check that the input itself has files."""
    if not files and not input_files(url):
        raise missing(url)
    return bool(files)


def _rows(frame: DataFrame, fields: Fields, reasons: Reasons) -> DataFrame:
    """The fields, the first reason that applies, and the source row, in one projection: unused columns cost nothing."""
    corrupt = column(CORRUPT) if CORRUPT in frame.columns else F.lit(None).cast("string")
    rejected = F.when(corrupt.isNotNull(), "line is corrupt")
    for applies, reason in reasons:
        rejected = rejected.when(applies, reason)
    source_row = F.to_json(F.struct(*[column(name) for name in frame.columns if name != CORRUPT]))
    return frame.select(
        *[value.alias(name) for name, value in fields.items()],
        rejected.alias("rejected"),
        F.coalesce(corrupt, source_row).alias("row"),
    )


def _one_per_entry(rows: DataFrame, pattern: str) -> DataFrame:
    """One event per match of `pattern` in item_key; a rejected row stays one row, a row without a match is dropped."""
    entries = F.regexp_extract_all("item_key", F.lit(pattern), F.lit(1))
    return rows.withColumn(
        "item_key", F.explode(F.when(F.col("rejected").isNull(), entries).otherwise(F.array("item_key")))
    )


def _blanks(names: Sequence[str]) -> Reasons:
    return [(_blank(column(name)), f"{name} is blank") for name in names]


def _blank(value: Column) -> Column:
    return value.isNull() | (F.trim(value.cast("string")) == "")


def _key(frame: DataFrame, name: str, url: str) -> Column:
    kind = frame.schema[name].dataType
    if not isinstance(kind, _KEYS):
        raise UserError(
            f"column {name!r} of {url} is {kind.simpleString()}, keys are text or whole numbers: set data.columns"
        )
    return column(name).cast("string")


def _number(frame: DataFrame, name: str, url: str) -> Column:
    kind = frame.schema[name].dataType
    if not isinstance(kind, _NUMBERS):
        raise UserError(f"column {name!r} of {url} is {kind.simpleString()}, a number is needed: set data.columns")
    return column(name).try_cast("double")


def _unusable(number: Column) -> Column:
    # NaN is greater than any number in Spark, so one comparison refuses it and both infinities.
    return number.isNull() | (F.abs(number) >= float("inf"))


def _time(frame: DataFrame, data: DataConfig) -> tuple[Column, Reasons]:
    """The time in seconds, and the reasons to reject it.

    The size of a number tells its unit (1e11 s is the year 5138, 1e11 ms is 1973), so a
    wrong `data.time_unit` is noticed.
    """
    name = data.columns.time
    if isinstance(frame.schema[name].dataType, _DATES):
        seconds = column(name).cast("timestamp").cast("double")
        return seconds, [(seconds < 0, f"{name} is negative")]
    if data.time_format is not None:
        parsed = F.try_to_timestamp(column(name).cast("string"), F.lit(data.time_format))
        seconds = parsed.cast("double")
        return seconds, [
            (seconds.isNull(), f"{name} is not of the form {data.time_format}"),
            (seconds < 0, f"{name} is negative"),
        ]
    value = _number(frame, name, data.interactions)
    reasons = [(_unusable(value), f"{name} is not a number"), (value < 0, f"{name} is negative")]
    lowest = 0.0
    for unit, per_second in _UNITS.items():
        if unit != data.time_unit:
            looks = (value >= lowest) & (value < _FAR * per_second)
            reasons.append((looks, f"{name} looks like {_NAMES[unit]}: set data.time_unit={unit}"))
        lowest = _FAR * per_second
    reasons.append((value >= lowest, f"{name} is after the year 5000 in every unit"))
    return value / _UNITS[data.time_unit], reasons


def _check_time_format(spark: SparkSession, pattern: str) -> None:
    try:
        spark.range(1).select(F.try_to_timestamp(F.lit("2000-01-01"), F.lit(pattern))).collect()
    except PySparkException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"data.time_format={pattern} is no pattern that Spark knows: {reason}") from None


def _string(frame: DataFrame, name: str) -> Column:
    """A column as a string; nested values as JSON."""
    nested = isinstance(frame.schema[name].dataType, (T.ArrayType, T.StructType, T.MapType))
    return F.to_json(column(name)) if nested else column(name).cast("string")
