"""Every kind of bad input is one clear line."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from pad_dist.config.load import parse_config
from pad_dist.dataset.lineage import input_files
from pad_dist.errors import UserError
from spark_jobs.inputs import check_rejected, read_catalogue, read_events, set_aside
from tests.support.inputs import as_csv, as_json, as_table, events_at, events_of, items_at, texts_of

pytestmark = pytest.mark.slow


def test_a_missing_file_lists_its_folder(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "events.csv").touch()
    with pytest.raises(UserError, match=r"event\.csv does not exist; .* holds events\.csv$"):
        events_of(spark, events_at(tmp_path / "event.csv"))
    with pytest.raises(UserError, match=r"no/event\.csv does not exist; .*/no does not exist either$"):
        events_of(spark, events_at(tmp_path / "no" / "event.csv"))


def test_a_missing_column_lists_the_columns(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("who,time,what\na,1,t\n")
    (tmp_path / "a.jsonl").write_text('{"who":"a","time":1,"what":"t"}\n')
    pq.write_table(pa.table({"time": [1], "what": ["t"], "who": ["a"]}), tmp_path / "a.parquet")
    for file in tmp_path.iterdir():
        with pytest.raises(UserError, match=r"has no column 'when'; it has \w+, \w+, \w+: set data\.columns"):
            events_of(spark, events_at(file))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_columns_that_change_between_files_are_named(spark: SparkSession, tmp_path: Path, kind: str) -> None:
    for n, time in enumerate(["stamp", "when", "when"]):
        table = pa.table({"who": ["a"], "what": ["i"], time: [1], "extra": [n]})
        if kind == "parquet":
            pq.write_table(table, tmp_path / f"{n}.parquet")
        else:
            row = table.to_pylist()[0]
            lines = [",".join(row), ",".join(map(str, row.values()))] if kind == "csv" else [json.dumps(row)]
            (tmp_path / f"{n}.{kind}").write_text("\n".join(lines) + "\n")
    message = rf"\S*/0\.{kind} has no 'when', which \S*/1\.{kind} has; new in it: 'stamp': write all files alike$"
    with pytest.raises(UserError, match=rf"the columns change between files: {message}"):
        events_of(spark, events_at(tmp_path))


def test_a_parquet_type_that_changes_between_files_is_named(spark: SparkSession, tmp_path: Path) -> None:
    pq.write_table(pa.table({"who": ["a"], "what": ["i"], "when": [1]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"who": ["a"], "what": ["i"], "when": ["1"]}), tmp_path / "2.parquet")
    with pytest.raises(UserError, match=r"'when' is int64 in \S*/1\.parquet but string in \S*/2\.parquet: write all"):
        events_of(spark, events_at(tmp_path))


def test_csv_columns_in_another_order_are_read_by_name(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("who,what,when\na,i,1\n")
    (tmp_path / "2.csv").write_text("extra,when,,what,who,\nx,2,y,j,b,z\n")
    assert events_of(spark, events_at(tmp_path)) == [("a", "i", 1.0), ("b", "j", 2.0)]
    (tmp_path / "3.csv").write_text("who,what,when,who\na,i,1,b\n")
    with pytest.raises(UserError, match="has column 'who' twice"):
        events_of(spark, events_at(tmp_path))


def test_a_json_key_may_come_late_and_a_text_key_in_another_file(spark: SparkSession, tmp_path: Path) -> None:
    rare = [{"key": f"k{n}"} for n in range(1500)] + [{"key": "last", "title": "T", "brand": "B"}]
    (tmp_path / "1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rare))
    (tmp_path / "2.jsonl").write_text('{"key":"x","title":"X"}\n')
    data = items_at(tmp_path, ["title", "by {brand}"])
    assert texts_of(spark, data)["last"] == "T by B"
    files = list(input_files(str(tmp_path)))
    assert [row.text for row in read_catalogue(spark, data, files[1:]).collect()] == ["X"]
    with pytest.raises(UserError, match=r"has no column 'maker'; it has key, title: set data\.columns"):
        texts_of(spark, items_at(tmp_path, ["title", "by {maker}"]))


def test_an_unknown_extension_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").touch()
    with pytest.raises(UserError, match=r"a\.xlsx has an unknown extension; give \.csv"):
        events_of(spark, events_at(tmp_path / "a.xlsx"))
    with pytest.raises(UserError, match=r"holds a\.xlsx; give \.csv"):
        events_of(spark, events_at(tmp_path))


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("when", [[1]], r"column 'when' of .* is array<bigint>, a number is needed"),
        ("who", [1.0], r"column 'who' of .* is double, keys are text or whole numbers"),
        (
            "when",
            pa.array([1], pa.timestamp("ns")),
            r"column 'when' of .* is in nanoseconds, which Spark does not read",
        ),
    ],
)
def test_a_column_of_the_wrong_type_is_refused(
    spark: SparkSession, tmp_path: Path, column: str, values: Any, message: str
) -> None:
    table: dict[str, Any] = {"who": ["a"], "what": ["i"], "when": [1]} | {column: values}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=message):
        events_of(spark, events_at(tmp_path))


@pytest.mark.parametrize("name", ["csv.gz", "jsonl.gz", "parquet"])
@pytest.mark.parametrize("share", [0.01, 0.6])
def test_all_damaged_files_are_named(spark: SparkSession, tmp_path: Path, name: str, share: float) -> None:
    rows = [(f"u{n * 7919 % 10007}", f"i{n}", n * n % 10007 / 7) for n in range(3000)]
    for n in range(4):
        file = tmp_path / f"{n}.{name}"
        if name == "parquet":
            pq.write_table(as_table(rows), file)
        else:
            file.write_bytes(gzip.compress((as_csv if "csv" in name else as_json)(rows).encode()))
        if n in (1, 3):
            whole = file.read_bytes()
            file.write_bytes(whole[: int(len(whole) * share)])
    which = rf"\S*/1\.{name}, \S*/3\.{name} \(2 of 4 files\) are truncated or damaged: copy them again$"
    with pytest.raises(UserError, match=rf"cannot be read, {which}") as error:
        events_of(spark, events_at(tmp_path))
    assert len(str(error.value)) < 600


def test_a_wrong_checksum_is_noticed(spark: SparkSession, tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(as_csv([(f"u{n}", "i", 1.0) for n in range(3000)]).encode()))
    packed[-6] ^= 1  # the checksum
    (tmp_path / "a.csv.gz").write_bytes(bytes(packed))
    with pytest.raises(UserError, match=r"a\.csv\.gz is truncated or damaged: copy it again$"):
        events_of(spark, events_at(tmp_path))


def test_too_many_rejected_rows_are_refused_with_their_reasons() -> None:
    check_rejected({"time is blank": 2}, 200, "x.csv", 0.01, "set/aside")
    check_rejected({}, 0, "x.csv", 0.0, "set/aside")
    with pytest.raises(
        UserError,
        match=r"^3 of 200 rows \(1\.5%\) of x\.csv are unreadable \(time is blank: 2, user is blank: 1\), more than "
        r"data\.max_rejected_share=0\.01 allows: see set/aside, mend",
    ):
        check_rejected({"user is blank": 1, "time is blank": 2}, 200, "x.csv", 0.01, "set/aside")


def test_rejected_rows_are_set_aside_in_order(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("who,what,when\na,i,1\n,j,2\nb,i,x\n,i,2\nshort\n")
    set_aside(
        read_events(spark, events_at(tmp_path), list(input_files(str(tmp_path)))),
        "interactions",
        f"{tmp_path}/rejected",
    )
    lines = (tmp_path / "rejected" / "interactions.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"reason": "line is corrupt", "row": "short"},
        {"reason": "when is not a number", "row": '{"who":"b","what":"i","when":"x"}'},
        {"reason": "who is blank", "row": '{"what":"i","when":"2"}'},
        {"reason": "who is blank", "row": '{"what":"j","when":"2"}'},
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"columns": {"text": ["title", "by {brand"]}}, r"'by \{brand' is not of the form 'words \{column\} words'"),
        ({"columns": {"text": "{price:.2f}"}}, r"'\{price:\.2f\}' is not of the form"),
        ({"columns": {"text": []}}, r"data\.columns\.text needs a column"),
        ({"columns": {"item_pattern": r"\S+-1"}}, r"data\.columns\.item_pattern needs one group, not 0"),
        ({"columns": {"item_pattern": "("}}, r"data\.columns\.item_pattern is no regular expression"),
        ({"events_format": {"kind": "json", "separator": "|"}}, r"kind json has no separator: for csv alone"),
        ({"time_unit": "ms", "time_format": "yyyy"}, r"data\.time_format reads text, data\.time_unit numbers"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_config({"name": "x", "data": data}, "run.yaml")
