"""Files of CSV, JSON lines, Python literals or Parquet as Spark frames with the needed columns.

The first lines or the footer of every file are checked before Spark scans it,
because Spark takes the columns of one file for those of all.
"""

from __future__ import annotations

import ast
import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from gzip import GzipFile
from itertools import islice
from typing import IO, Any, Literal, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import Column, DataFrame, DataFrameReader, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from pad_dist import storage
from pad_dist.config import InputFormat
from pad_dist.dataset.lineage import input_files
from pad_dist.errors import UserError
from spark_jobs.damage import DAMAGE, missing, some, unreadable

Kind = Literal["csv", "json", "python", "parquet"]
EXTENSIONS: dict[str, Kind] = {"csv": "csv", "json": "json", "jsonl": "json", "ndjson": "json", "parquet": "parquet"}

CORRUPT = "_corrupt_record"
"""Column of a frame that holds a line of the file unchanged, if it could not be parsed."""

_SAMPLED_LINES = 1000
_THREADS = 16
_Value = TypeVar("_Value")


def load(
    spark: SparkSession,
    url: str,
    files: Sequence[str],
    layout: InputFormat,
    needed: Sequence[str],
    optional: Sequence[str] = (),
    multi_line: bool = False,
) -> list[DataFrame]:
    """Frames that together hold the rows of `files`, each with the columns `needed` and `optional`, or more.

    CSV headers that differ in order give several frames. Columns of text formats are strings.

    Args:
        url: what the user calls the input, for messages.
        files: not empty.
        needed: columns that every file must have.
        optional: columns that JSON lines may lack, as long as one row of the input has them.
        multi_line: quoted CSV values may hold line breaks; a file is then read by one task.

    Raises:
        UserError: a column is missing or changes between files, a file is damaged
            at its head, or an extension is unknown.
    """
    kind = _kind(url, files, layout)
    columns = list(dict.fromkeys([*needed, *optional]))
    if kind == "csv":
        return _load_csv(spark, url, files, layout, columns, multi_line)
    paths = [_literal(file) for file in files]
    if kind == "parquet":
        _check_parquet(url, files, columns)
        return [spark.read.parquet(*paths).select(*[column(name) for name in columns])]
    parse = _json_object if kind == "json" else _python_object
    _check_keys(spark, url, files, list(needed), list(optional), kind, parse)
    return [_load_objects(spark, paths, columns, kind)]


def column(name: str) -> Column:
    """A column by its exact name, whatever characters that has."""
    return F.col("`" + name.replace("`", "``") + "`")


def _kind(url: str, files: Sequence[str], layout: InputFormat) -> Kind:
    if layout.kind != "auto":
        return layout.kind
    kinds = {EXTENSIONS.get(_extension(file) or "") for file in files}
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind is None:
        names = [_name(file) for file in files]
        one = len(files) == 1 and url.endswith(names[0])
        where = f"{url} has an unknown extension" if one else f"{url} holds {some(names)}"
        raise UserError(
            f"{where}; give .csv, .jsonl (both may be .gz) or .parquet files of one kind, or set kind in "
            "data.events_format or data.items_format"
        )
    return kind


def _name(file: str) -> str:
    return file.rsplit("/", 1)[-1]


def _extension(file: str) -> str | None:
    match = re.search(r"\.(\w+)$", _name(file).removesuffix(".gz"))
    return match[1].lower() if match else None


def _literal(file: str) -> str:
    """The path for Spark, with the characters of a pattern escaped."""
    return re.sub(r"([\[\]{}*?\\])", r"\\\1", file)


def _of_each(url: str, files: Sequence[str], look: Callable[[IO[bytes]], _Value]) -> dict[str, _Value]:
    """{file: what `look` returns}; it reads each file from the start, decompressed."""

    def open_and_look(file: str) -> _Value:
        fs, path = storage.filesystem(file)
        with fs.open(path, "rb") as raw:
            return look(cast(IO[bytes], GzipFile(fileobj=raw)) if path.endswith(".gz") else raw)

    try:
        with ThreadPoolExecutor(_THREADS) as threads:
            return dict(zip(files, threads.map(open_and_look, files), strict=True))
    except FileNotFoundError:
        raise missing(url) from None
    except DAMAGE as error:
        reason = " ".join(str(error).split())
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{url} cannot be read, give this user access to it: {reason}") from None
        raise unreadable(url, f"a file is truncated or damaged ({reason})") from None


def _require(url: str, needed: Sequence[str], columns: dict[str, list[str]]) -> None:
    """Check that every file has the needed columns; the error names the input, or the file that differs."""
    complete = next((file for file, names in columns.items() if set(needed) <= set(names)), None)
    for file, names in columns.items():
        lacking = [name for name in needed if name not in names]
        if lacking and complete is None:
            where = url if file == url or url.endswith(_name(file)) else f"{file}, of {url},"
            raise UserError(f"{where} has no column {lacking[0]!r}; it has {some(names)}: set data.columns")
        if lacking and complete is not None:
            new = [name for name in names if name not in columns[complete]]
            raise UserError(
                f"{url}: the columns change between files: {file} has no {some([repr(n) for n in lacking])}, "
                f"which {complete} has; new in it: {some([repr(n) for n in new])}: write all files alike"
            )


def _load_csv(
    spark: SparkSession, url: str, files: Sequence[str], layout: InputFormat, needed: list[str], multi_line: bool
) -> list[DataFrame]:
    headers = _of_each(url, files, lambda file: _header(file, layout))
    headers = {file: names for file, names in headers.items() if names} or {files[0]: []}  # an empty file has no rows
    _require(url, needed, headers)
    for names in headers.values():
        twice = [name for name in needed if names.count(name) > 1]
        if twice:
            raise UserError(f"{url} has column {twice[0]!r} twice: name the columns apart")
    by_header: dict[tuple[str, ...], list[str]] = {}
    for file, names in headers.items():
        by_header.setdefault(tuple(names), []).append(_literal(file))
    reader = _csv_reader(spark, layout, multi_line)
    return [reader.schema(_strings([*_apart(names), CORRUPT])).csv(paths) for names, paths in by_header.items()]


def _csv_reader(spark: SparkSession, layout: InputFormat, multi_line: bool) -> DataFrameReader:
    return spark.read.options(
        sep=layout.separator,
        encoding=layout.encoding,
        header=not layout.names,
        quote='"' if layout.quoted else "",
        escape='"' if layout.quoted else "",
        multiLine=multi_line and layout.quoted,
        mode="PERMISSIVE",
        columnNameOfCorruptRecord=CORRUPT,
        # Without pruning a short or long line is noticed whatever columns are used.
        columnPruning=False,
    )


def _header(file: IO[bytes], layout: InputFormat) -> list[str]:
    """The columns of one CSV file; none if it is empty."""
    line = file.readline().decode(layout.encoding, "replace").removeprefix("\ufeff").rstrip("\r\n")
    if not line or layout.names:
        return list(layout.names) if line else []
    if layout.quoted and len(layout.separator) == 1:
        return next(csv.reader([line], delimiter=layout.separator))
    return line.split(layout.separator)


def _apart(names: Sequence[str]) -> list[str]:
    """Names that Spark accepts: a blank or repeated one, which is not needed, becomes `_c<place>`."""
    return [
        name if name.strip() and name not in names[:place] and name != CORRUPT else f"_c{place}"
        for place, name in enumerate(names)
    ]


def _strings(names: Sequence[str]) -> T.StructType:
    return T.StructType([T.StructField(name, T.StringType()) for name in names])


def _check_parquet(url: str, files: Sequence[str], needed: list[str]) -> None:
    footers = _of_each(url, files, lambda file: cast(pa.Schema, pq.read_schema(file)))
    _require(url, needed, {file: list(schema.names) for file, schema in footers.items()})
    first = files[0]
    for file, schema in footers.items():
        for name in needed:
            kind, expected = schema.field(name).type, footers[first].field(name).type
            if kind != expected:
                raise UserError(
                    f"{url}: the columns change between files: {name!r} is {expected} in {first} but {kind} in "
                    f"{file}: write all files alike"
                )
            if pa.types.is_timestamp(kind) and kind.unit == "ns":
                raise UserError(
                    f"column {name!r} of {url} is in nanoseconds, which Spark does not read: write microseconds "
                    "(pandas: to_parquet(coerce_timestamps='us'))"
                )


def _json_object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _python_object(line: str) -> dict[str, Any] | None:
    try:
        value = ast.literal_eval(line.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _check_keys(
    spark: SparkSession,
    url: str,
    files: Sequence[str],
    needed: list[str],
    optional: list[str],
    kind: Kind,
    parse: Callable[[str], dict[str, Any] | None],
) -> None:
    """Check keys, as objects have no header: each file has every needed one, the input every optional one."""
    wanted = {*needed, *optional}

    def keys(file: IO[bytes]) -> list[str]:
        seen: dict[str, None] = {}
        for line in islice(file, _SAMPLED_LINES):
            seen |= dict.fromkeys(parse(line.decode("utf-8", "replace")) or {})
            if seen.keys() >= wanted:
                break
        return sorted(seen)

    keys_of = {file: names for file, names in _of_each(url, files, keys).items() if names}  # an empty file has no rows
    for file, names in keys_of.items():
        if not set(needed) <= set(names):
            keys_of[file] = sorted({*names, *_keys_anywhere(spark, [file], needed, kind)})
    _require(url, needed, keys_of or {files[0]: []})
    seen = set().union(*keys_of.values())
    rare = [name for name in optional if name not in seen]
    if rare:
        anywhere = _keys_anywhere(spark, list(input_files(url)), rare, kind)
        _require(url, rare, {url: sorted({*seen, *anywhere})})


def _keys_anywhere(spark: SparkSession, files: Sequence[str], columns: list[str], kind: Kind) -> list[str]:
    """Which of the columns have a value in some row; reads all rows."""
    frame = _load_objects(spark, [_literal(file) for file in files], columns, kind)
    counts = frame.agg(*[F.count(column(name)) for name in columns]).collect()[0]
    return [name for name, count in zip(columns, counts, strict=True) if count]


def _load_objects(spark: SparkSession, paths: list[str], columns: list[str], kind: Kind) -> DataFrame:
    schema = _strings(list(dict.fromkeys([*columns, CORRUPT])))
    if kind == "json":
        return spark.read.schema(schema).json(paths, mode="PERMISSIVE", columnNameOfCorruptRecord=CORRUPT)

    def parsed(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            lines = [line.decode("utf-8", "replace") for line in batch["line"].to_pylist()]
            rows = [(line, _python_object(line)) for line in lines if line.strip()]
            values: dict[str, Any] = {name: [_text((row or {}).get(name)) for _, row in rows] for name in columns}
            values[CORRUPT] = [line if row is None else None for line, row in rows]
            yield pa.RecordBatch.from_pydict({name: pa.array(v, pa.string()) for name, v in values.items()})

    return spark.read.text(paths).select(F.col("value").cast("binary").alias("line")).mapInArrow(parsed, schema)


def _text(value: Any) -> str | None:
    """The value as Spark's JSON reader puts it into a string column."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text.encode("utf-8", "replace").decode()  # a literal may hold half a surrogate pair
