"""Read CSV, JSON lines or Parquet of events and items into typed columns.

A row that cannot be used is kept, with the reason in column `rejected`, so that
the caller counts it and sets it aside instead of losing it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os.path import abspath
from typing import Literal

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from pad_dist import storage
from pad_dist.errors import UserError

Kind = Literal["key", "number", "text"]
Format = Literal["csv", "json", "parquet"]
FORMATS: dict[str, Format] = {"csv": "csv", "json": "json", "jsonl": "json", "ndjson": "json", "parquet": "parquet"}

MOST_SET_ASIDE = 10_000
"""Rejected rows written out per input; all are counted."""

_CORRUPT = "_corrupt_record"
_SAMPLED_LINES = 1000
_NUMBERS = (T.NumericType, T.StringType, T.TimestampType, T.TimestampNTZType, T.DateType)


def read_rows(
    spark: SparkSession, url: str, fields: Mapping[str, tuple[str, Kind]], multi_line: bool = False
) -> DataFrame:
    """Rows of `url` as columns `fields`, `rejected` (reason or null) and `row` (the source row as text).

    Args:
        fields: output name -> (source column, kind). A `key` becomes a non-blank
            string, a `number` a finite double (dates and times: Unix seconds), a
            `text` a string that may be null.
        multi_line: quoted CSV values may hold line breaks; a file is then read by one task.

    Raises:
        UserError: missing or unreadable file, missing column, unknown extension,
            or a column that cannot hold numbers.
    """
    with reading(url):
        frame = _load(spark, url, [source for source, _ in fields.values()], multi_line)
    corrupt = F.col(_CORRUPT) if _CORRUPT in frame.columns else F.lit(None).cast("string")
    reason = F.when(corrupt.isNotNull(), "line is corrupt")
    columns: dict[str, Column] = {}
    for name, (source, kind) in fields.items():
        column = _column(source)
        if kind == "number":
            columns[name] = _number(column, frame.schema[source].dataType, source, url)
            reason = reason.when(_blank(column), f"{source} is blank")
            # NaN is greater than any number in Spark, so one comparison refuses it and both infinities.
            reason = reason.when(
                columns[name].isNull() | (F.abs(columns[name]) >= float("inf")), f"{source} is not a number"
            )
        else:
            columns[name] = column.cast("string")
        if kind == "key":
            reason = reason.when(_blank(column), f"{source} is blank")
    whole_row = F.to_json(F.struct(*[_column(name) for name in frame.columns if name != _CORRUPT]))
    return frame.select(
        *[column.alias(name) for name, column in columns.items()],
        reason.alias("rejected"),
        F.coalesce(corrupt, whole_row).alias("row"),
    )


@dataclass(frozen=True)
class Admitted:
    """The usable rows of one input, how many rows it has, and how many were rejected by reason."""

    rows: DataFrame
    read: int
    rejected: Counter[str]


def admit(rows: DataFrame, url: str, role: str, max_share: float, folder: str) -> Admitted:
    """Count the rows of `read_rows(url)` and write the rejected ones as JSON lines to <folder>/<role>.jsonl.

    At most MOST_SET_ASIDE are written, the first in the order of reason and row;
    a file of an earlier run is removed where nothing is rejected.

    Raises:
        UserError: more than `max_share` of the rows is rejected, or `url` cannot be read.
    """
    set_aside = storage.join(folder, f"{role}.jsonl")
    with reading(url):
        counts = {row.rejected: row["count"] for row in rows.groupBy("rejected").count().collect()}
        read = sum(counts.values())
        counts.pop(None, None)
        rejected = Counter({f"{role}: {reason}": count for reason, count in counts.items()})
        if not rejected:
            storage.remove(set_aside)
            return Admitted(rows, read, rejected)
        bad = rows.where(F.col("rejected").isNotNull()).orderBy("rejected", "row").limit(MOST_SET_ASIDE)
        lines = [
            json.dumps({"reason": row.rejected, "row": row.row}) for row in bad.select("rejected", "row").collect()
        ]
    storage.write_bytes(set_aside, ("\n".join(lines) + "\n").encode())
    share = rejected.total() / read
    if share > max_share:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(counts.items()))
        raise UserError(
            f"{rejected.total()} of {read} rows ({share:.1%}) of {url} are unreadable ({reasons}), more than "
            f"data.max_rejected_share={max_share:g} allows: see {set_aside}, mend the input or raise the share"
        )
    return Admitted(rows.where(F.col("rejected").isNull()), read, rejected)


@contextmanager
def reading(url: str) -> Iterator[None]:
    """Turn Spark's failures to find or read `url` inside the block into a UserError.

    Frames are lazy: put the first action that scans the input inside too.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Py4JJavaError or PySparkException, by the moment Spark notices
        text = str(error)
        if "[PATH_NOT_FOUND]" in text:
            raise UserError(f"{url} does not exist; {_neighbours(url)}") from None
        if "CSV header does not conform" in text:
            raise UserError(f"{url}: a file has other CSV columns, or in another order, than the first one") from None
        if "[FAILED_READ_FILE" in text:
            file = re.search(r"while reading file (\S+?)\.?\s", text)
            causes = re.findall(r"Caused by: [\w.$]*?(\w+): ([^\n]+)", text)
            cause = f" ({causes[-1][0]}: {causes[-1][1].strip()})" if causes else ""
            raise UserError(
                f"{url} cannot be read, {file[1] if file else 'a file'} is truncated or damaged{cause}: copy it again"
            ) from None
        raise


def absolute(url: str) -> str:
    """A plain local path as a file:// URL, so that Spark and fsspec mean the same file; URLs stay as they are."""
    return url if "://" in url else "file://" + abspath(url)


def _format(url: str) -> Format:
    """The format by extension; a directory without one takes its files'."""
    names = [url.rstrip("/")]
    fs, path = storage.filesystem(absolute(url))
    if _extension(names[0]) is None and fs.isdir(path):
        names = [name for name in _listing(url) if not name.startswith(("_", "."))]
    formats = {FORMATS.get(_extension(name) or "") for name in names}
    found = formats.pop() if len(formats) == 1 else None
    if found is None:
        where = f"{url} holds {_some(names)}" if names != [url.rstrip("/")] else f"{url} has an unknown extension"
        raise UserError(f"{where}; give .csv, .jsonl (both may be .gz) or .parquet files of one kind")
    return found


def _extension(name: str) -> str | None:
    match = re.search(r"\.(\w+)$", name.rsplit("/", 1)[-1].removesuffix(".gz"))
    return match[1].lower() if match else None


def _load(spark: SparkSession, url: str, needed: list[str], multi_line: bool) -> DataFrame:
    kind, path = _format(url), absolute(url)
    if kind == "parquet":
        frame = spark.read.parquet(path)
        _require(url, needed, frame.columns)
        return frame
    if kind == "json":
        # JSON lines have no header: the keys of the first lines say which columns there are.
        lines = spark.read.text(path).limit(_SAMPLED_LINES).collect()
        _require(url, needed, sorted({key for line in lines for key in _json_keys(line.value)}))
        schema = _strings(dict.fromkeys([*needed, _CORRUPT]))
        return spark.read.schema(schema).json(path, mode="PERMISSIVE", columnNameOfCorruptRecord=_CORRUPT)
    reader = spark.read.options(
        header=True, multiLine=multi_line, quote='"', escape='"', mode="PERMISSIVE", columnNameOfCorruptRecord=_CORRUPT
    )
    columns = reader.csv(path).columns
    _require(url, needed, columns)
    # Without pruning a short or long line is noticed whatever columns are used. The header of every file is
    # checked against the first one's, except where Spark had to invent names (_c0) for columns without one.
    invented = any(re.fullmatch(r"_c\d+", name) for name in columns)
    reader = reader.options(columnPruning=False, enforceSchema=invented)
    return reader.schema(_strings([*columns, _CORRUPT])).csv(path)


def _require(url: str, needed: list[str], columns: list[str]) -> None:
    for name in needed:
        if name not in columns:
            raise UserError(f"{url} has no column {name!r}; it has {_some(columns)}: set data.columns")


def _strings(names: list[str] | dict[str, None]) -> T.StructType:
    return T.StructType([T.StructField(name, T.StringType()) for name in names])


def _json_keys(line: str) -> list[str]:
    try:
        value = json.loads(line)
    except ValueError:
        return []
    return list(value) if isinstance(value, dict) else []


def _column(name: str) -> Column:
    return F.col("`" + name.replace("`", "``") + "`")


def _blank(column: Column) -> Column:
    return column.isNull() | (F.trim(column.cast("string")) == "")


def _number(column: Column, kind: T.DataType, source: str, url: str) -> Column:
    if not isinstance(kind, _NUMBERS):
        raise UserError(f"column {source!r} of {url} is {kind.simpleString()}, a number is needed: set data.columns")
    if isinstance(kind, (T.DateType, T.TimestampNTZType)):
        column = column.cast("timestamp")
    return column.try_cast("double")


def _listing(url: str) -> list[str]:
    fs, path = storage.filesystem(absolute(url))
    return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in fs.ls(path, detail=False))


def _neighbours(url: str) -> str:
    folder = url.rstrip("/").rpartition("/")[0] or "."
    return f"{folder} holds {_some(_listing(folder))}" if storage.exists(folder) else f"{folder} does not exist either"


def _some(names: list[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + more
