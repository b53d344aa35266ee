"""Every format gives the same typed rows; every kind of bad input one clear line."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from pad_dist.errors import UserError
from spark_jobs.inputs import Kind, admit, read_rows

FIELDS: dict[str, tuple[str, Kind]] = {
    "user_key": ("who", "key"),
    "time": ("when", "number"),
    "text": ("title", "text"),
}
ROWS = [("u1", 1.5e9, 'a "b", c\\'), ("7", -2.0, None), ("ü", 0.25, " x ")]


def rows_of(spark: SparkSession, file: Path, multi_line: bool = False) -> list[tuple[object, ...]]:
    frame = read_rows(spark, str(file), FIELDS, multi_line)
    return sorted((row.user_key, row.time, row.text) for row in frame.collect() if row.rejected is None)


def reasons_of(spark: SparkSession, file: Path) -> list[str]:
    return sorted(row.rejected for row in read_rows(spark, str(file), FIELDS).collect() if row.rejected is not None)


def as_csv(rows: list[tuple[str, float, str | None]]) -> str:
    quoted = ['"' + title.replace('"', '""') + '"' if title is not None else "" for _, _, title in rows]
    return "n,who,when,title\n" + "".join(
        f"{n},{who},{when},{title}\n" for n, ((who, when, _), title) in enumerate(zip(rows, quoted, strict=True))
    )


def as_json(rows: list[tuple[str, float, str | None]]) -> str:
    return "".join(
        json.dumps({"who": int(who) if who.isdigit() else who, "when": when, "title": title}) + "\n"
        for who, when, title in rows
    )


def test_csv_json_lines_parquet_and_gzip_give_the_same_rows(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(as_csv(ROWS))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(as_csv(ROWS).encode()))
    (tmp_path / "a.jsonl").write_text(as_json(ROWS))
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(as_json(ROWS).encode()))
    users, times, titles = zip(*ROWS, strict=True)
    pq.write_table(pa.table({"who": users, "when": times, "title": titles}), tmp_path / "a.parquet")
    for name in ("a.csv", "a.csv.gz", "a.jsonl", "a.json.gz", "a.parquet"):
        assert rows_of(spark, tmp_path / name) == sorted(ROWS), name


def test_a_directory_is_read_by_the_extension_of_its_files(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    for n, row in enumerate(ROWS):
        (tmp_path / "events" / f"{n}.csv").write_text(as_csv([row]))
    (tmp_path / "events" / "_SUCCESS").touch()
    assert rows_of(spark, tmp_path / "events") == sorted(ROWS)


def test_a_quoted_value_may_hold_a_line_break(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('who,when,title\nu1,1,"two\nlines"\nu2,2,one\n')
    assert rows_of(spark, tmp_path / "a.csv", multi_line=True) == [("u1", 1.0, "two\nlines"), ("u2", 2.0, "one")]


def test_timestamps_and_dates_become_unix_seconds(spark: SparkSession, tmp_path: Path) -> None:
    hour = pa.array([3_600_000_000], pa.timestamp("us", tz="UTC"))
    day = pa.array([1], pa.date32())
    for when, seconds in ((hour, 3600.0), (hour.cast(pa.timestamp("us")), 3600.0), (day, 86400.0)):
        pq.write_table(pa.table({"who": ["a"], "when": when, "title": ["t"]}), tmp_path / "a.parquet")
        assert rows_of(spark, tmp_path / "a.parquet") == [("a", seconds, "t")]


def test_unusable_csv_rows_are_kept_with_their_reason(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "who,when,title\na,1,t\n,1,t\n  ,1,t\nb,,t\nc,soon,t\nd,nan,t\ne,-Infinity,t\nf,1\ng,1,t,t\n"
    )
    assert reasons_of(spark, tmp_path / "a.csv") == [
        *["line is corrupt"] * 2,
        "when is blank",
        *["when is not a number"] * 3,
        *["who is blank"] * 2,
    ]


def test_unusable_json_lines_are_kept_with_their_reason(spark: SparkSession, tmp_path: Path) -> None:
    lines = ['{"who":"a","when":1,"title":"t"}', '{"who":"a","wh', "nonsense", '{"who":"b","title":"t"}', '{"when":1}']
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, '{"who":"c","when":[1]}']) + "\n")
    assert reasons_of(spark, tmp_path / "a.jsonl") == [
        *["line is corrupt"] * 2,
        "when is blank",
        "when is not a number",
        "who is blank",
    ]


def test_a_missing_file_lists_its_folder(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "events.csv").touch()
    with pytest.raises(UserError, match=r"event\.csv does not exist; .* holds events\.csv$"):
        read_rows(spark, str(tmp_path / "event.csv"), FIELDS)
    with pytest.raises(UserError, match=r"no/event\.csv does not exist; .*/no does not exist either$"):
        read_rows(spark, str(tmp_path / "no" / "event.csv"), FIELDS)


def test_a_missing_column_lists_the_columns(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("who,time,title\na,1,t\n")
    (tmp_path / "a.jsonl").write_text('{"who":"a","time":1,"title":"t"}\n')
    pq.write_table(pa.table({"time": [1], "title": ["t"], "who": ["a"]}), tmp_path / "a.parquet")
    for file in tmp_path.iterdir():
        with pytest.raises(UserError, match=r"has no column 'when'; it has \w+, \w+, \w+: set data\.columns"):
            read_rows(spark, str(file), FIELDS)


def test_an_unknown_extension_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").touch()
    with pytest.raises(UserError, match=r"a\.xlsx has an unknown extension; give \.csv"):
        read_rows(spark, str(tmp_path / "a.xlsx"), FIELDS)
    with pytest.raises(UserError, match=r"holds a\.xlsx; give \.csv"):
        read_rows(spark, str(tmp_path), FIELDS)


def test_a_column_that_cannot_be_a_number_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    pq.write_table(pa.table({"who": ["a"], "when": [[1]], "title": ["t"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"column 'when' of .* is array<bigint>, a number is needed"):
        read_rows(spark, str(tmp_path / "a.parquet"), FIELDS)


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz", "a.parquet"])
@pytest.mark.parametrize("share", [0.01, 0.5])
def test_a_truncated_file_is_named(spark: SparkSession, tmp_path: Path, name: str, share: float) -> None:
    rows = [(f"u{n * 7919 % 10007}", n * n % 10007 / 7, f"t{n}") for n in range(5000)]
    file = tmp_path / name
    if name == "a.parquet":
        pq.write_table(
            pa.table({"who": [r[0] for r in rows], "when": [r[1] for r in rows], "title": ["t"] * 5000}), file
        )
    else:
        file.write_bytes(gzip.compress((as_csv if "csv" in name else as_json)(rows).encode()))
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=r"cannot be read, .* is truncated or damaged") as error:
        admit(read_rows(spark, str(file), FIELDS), str(file), "interactions", 1.0, str(tmp_path / "rejected"))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    assert not (tmp_path / "rejected").exists()


def test_files_whose_columns_are_in_another_order_are_refused(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "1.csv").write_text("who,when,title\na,1,t\n")
    (tmp_path / "x" / "2.csv").write_text("title,when,who\nt,1,a\n")
    with pytest.raises(UserError, match="other CSV columns, or in another order"):
        admit(read_rows(spark, str(tmp_path / "x"), FIELDS), "x", "interactions", 1.0, str(tmp_path / "rejected"))


def test_a_header_with_an_unnamed_column_is_read(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",who,when,title\n0,a,1,t\n")
    assert rows_of(spark, tmp_path / "a.csv") == [("a", 1.0, "t")]
