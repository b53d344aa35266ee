"""Every format gives the same typed rows."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from pad_dist.dataset.lineage import input_files
from pad_dist.errors import UserError
from spark_jobs.inputs import read_events, read_keys
from tests.support.inputs import ROWS, as_csv, as_json, as_table, events_at, events_of, items_at, reasons_of, texts_of

pytestmark = pytest.mark.slow


def test_every_format_gives_the_same_rows(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(as_csv(ROWS))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(as_csv(ROWS).encode()))
    (tmp_path / "a.jsonl").write_text(as_json(ROWS))
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(as_json(ROWS).encode()))
    pq.write_table(as_table(ROWS), tmp_path / "a.parquet")
    for name in ("a.csv", "a.csv.gz", "a.jsonl", "a.json.gz", "a.parquet"):
        assert events_of(spark, events_at(tmp_path / name)) == sorted(ROWS), name
    (tmp_path / "a.py").write_text("".join(f"{dict(zip(('who', 'what', 'when'), r, strict=True))!r}\n" for r in ROWS))
    assert events_of(spark, events_at(tmp_path / "a.py", events_format={"kind": "python"})) == sorted(ROWS)
    plain = "\n".join(f"{when}::{who}::{what}" for who, what, when in ROWS)
    (tmp_path / "a.dat").write_bytes(plain.encode("iso-8859-1"))
    layout = {"separator": "::", "names": ["when", "who", "what"], "quoted": False, "encoding": "iso-8859-1"}
    assert events_of(spark, events_at(tmp_path / "a.dat", events_format=layout | {"kind": "csv"})) == sorted(ROWS)


def test_a_directory_is_read_by_the_extension_of_its_files(spark: SparkSession, tmp_path: Path) -> None:
    folder = tmp_path / "events [a] {b}"  # no pattern
    folder.mkdir()
    for n, row in enumerate(ROWS):
        (folder / f"{n} [x]*.csv").write_text(as_csv([row]))
    (folder / "3.csv").touch()
    (folder / "_SUCCESS").touch()
    data = events_at(folder)
    files = [f"file://{file}" for file in sorted(folder.iterdir())]
    rows = read_events(spark, data, files[:4]).drop("rejected", "row").collect()
    assert sorted(map(tuple, rows)) == sorted(ROWS)


def test_only_the_given_files_are_read(spark: SparkSession, tmp_path: Path) -> None:
    for n, row in enumerate(ROWS):
        (tmp_path / f"{n}.csv").write_text(as_csv([row]))
    files = list(input_files(str(tmp_path)))
    data = events_at(tmp_path)
    assert [row.user_key for row in read_events(spark, data, files[1:2]).collect()] == ["7"]
    empty = read_events(spark, data, [])
    assert (empty.columns, empty.count()) == (["user_key", "item_key", "time", "rejected", "row"], 0)


def test_what_is_not_selected_is_not_computed(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(as_csv(ROWS))
    frame = read_events(spark, events_at(tmp_path), list(input_files(str(tmp_path))))

    def plan(*names: str) -> str:
        return str(frame.select(*names)._jdf.queryExecution().optimizedPlan().toString())

    assert "StructsToJson" in plan("row")
    assert "StructsToJson" not in plan("user_key", "item_key", "time", "rejected")


def test_a_quoted_title_may_hold_a_line_break(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('key,title\nk1,"two\nlines"\nk2,one\n')
    assert texts_of(spark, items_at(tmp_path)) == {"k1": "two\nlines", "k2": "one"}


def test_text_is_joined_from_the_pieces_that_are_there(spark: SparkSession, tmp_path: Path) -> None:
    rows = [
        {"key": "1", "title": "T", "brand": "B", "cats": [["Beauty", "Hair Care"], ["Gifts"]], "price": 9.5},
        {"key": "2", "title": "[Deluxe] T", "brand": "  ", "cats": ["A", ""], "price": None},
        {"key": "3", "title": None, "brand": "B", "cats": []},
        {"key": "4", "title": " "},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = ["title", "by {brand}", "cats", "({brand}: {price} USD)"]
    expected = {
        "1": "T by B Beauty, Hair Care, Gifts (B: 9.5 USD)",
        "2": "[Deluxe] T A",
        "3": "by B",
        "4": None,
    }
    assert texts_of(spark, items_at(tmp_path, text)) == expected
    table = pa.table({"key": ["1", "2"], "cats": pa.array([["A", "B"], None], pa.list_(pa.string()))})
    pq.write_table(table, tmp_path / "a.parquet")
    assert texts_of(spark, items_at(tmp_path / "a.parquet", "cats")) == {"1": "A, B", "2": None}


def test_each_match_in_a_list_is_an_event(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("who,what,when\na,x-1 y-0 z-1,5\nb,x-0,6\n,x-1 y-1,7\n")
    data = events_at(tmp_path, columns={"item_pattern": r"(\S+)-1(?!\S)"})
    assert events_of(spark, data) == [("a", "x", 5.0), ("a", "z", 5.0)]
    assert reasons_of(spark, data) == ["who is blank"]


def test_dates_and_texts_become_unix_seconds(spark: SparkSession, tmp_path: Path) -> None:
    hour = pa.array([3_600_000_000], pa.timestamp("us", tz="UTC"))
    day = pa.array([1], pa.date32())
    for when, seconds in ((hour, 3600.0), (hour.cast(pa.timestamp("us")), 3600.0), (day, 86400.0)):
        pq.write_table(pa.table({"who": ["a"], "what": ["b"], "when": when}), tmp_path / "a.parquet")
        assert events_of(spark, events_at(tmp_path / "a.parquet")) == [("a", "b", seconds)]
    (tmp_path / "a.csv").write_text("who,what,when\na,b,1970-01-02 01:00\na,b,1969-12-31 01:00\na,b,2 May\n")
    data = events_at(tmp_path / "a.csv", time_format="yyyy-MM-dd HH:mm")
    assert events_of(spark, data) == [("a", "b", 90000.0)]
    assert reasons_of(spark, data) == ["when is negative", "when is not of the form yyyy-MM-dd HH:mm"]
    with pytest.raises(UserError, match=r"^data\.time_format=bogus is no pattern that Spark knows: [^\n]*$"):
        events_of(spark, events_at(tmp_path / "a.csv", time_format="bogus"))


@pytest.mark.parametrize(
    ("unit", "times", "reasons"),
    [
        (
            "s",
            {"0": 0.0, "1.6e9": 1.6e9},
            ["milliseconds: set data.time_unit=ms", "microseconds: set data.time_unit=us"],
        ),
        ("ms", {"1.6e12": 1.6e9}, ["microseconds: set data.time_unit=us", *["seconds: set data.time_unit=s"] * 2]),
        ("us", {"1.6e15": 1.6e9}, ["milliseconds: set data.time_unit=ms", *["seconds: set data.time_unit=s"] * 2]),
    ],
)
def test_the_size_of_a_time_tells_its_unit(
    spark: SparkSession, tmp_path: Path, unit: str, times: dict[str, float], reasons: list[str]
) -> None:
    lines = [f"a,{n},{time}" for n, time in enumerate(["0", "1.6e9", "1.6e12", "1.6e15", "1.6e18", "-1"])]
    (tmp_path / "a.csv").write_text("\n".join(["who,what,when", *lines]) + "\n")
    data = events_at(tmp_path, time_unit=unit)
    assert [time for _, _, time in events_of(spark, data)] == list(times.values())
    looks = [f"when looks like {reason}" for reason in reasons]
    assert reasons_of(spark, data) == sorted([*looks, "when is negative", "when is after the year 5000 in every unit"])


def test_unusable_csv_rows_are_kept_with_their_reason(spark: SparkSession, tmp_path: Path) -> None:
    lines = ["a,i,1,5", ",i,1,5", "  ,i,1,5", "b,i,,5", "c,i,soon,5", "d,i,nan,5", "e,i,-Infinity,5", "f,i,1"]
    (tmp_path / "a.csv").write_text("\n".join(["who,what,when,stars", *lines, "g,i,1,5,5", "h,,1,5", "j,i,1,*"]) + "\n")
    bad = [
        *["line is corrupt"] * 2,
        "what is blank",
        "when is blank",
        *["when is not a number"] * 3,
        *["who is blank"] * 2,
    ]
    assert reasons_of(spark, events_at(tmp_path)) == bad
    rated = events_at(tmp_path, min_rating=1, columns={"rating": "stars"})
    assert reasons_of(spark, rated) == sorted([*bad, "stars is not a number"])
    assert events_of(spark, rated) == [("a", "i", 1.0, 5.0)]


def test_unusable_json_lines_are_kept_with_their_reason(spark: SparkSession, tmp_path: Path) -> None:
    good = '{"who":"a","what":"i","when":1}'
    lines = [good, '{"who":"a","wh', "nonsense", '{"who":"b","what":"i"}', '{"what":"i","when":1}']
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, '{"who":"c","what":"i","when":[1]}']) + "\n")
    data = events_at(tmp_path)
    assert reasons_of(spark, data) == [
        *["line is corrupt"] * 2,
        "when is blank",
        "when is not a number",
        "who is blank",
    ]
    rows = read_events(spark, data, list(input_files(data.interactions))).where("rejected = 'line is corrupt'")
    assert sorted(row.row for row in rows.collect()) == sorted(lines[1:3])


def test_erasure_lists_come_in_every_format(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("who,why\nu1,x\n,y\n7,\n")
    (tmp_path / "a.jsonl").write_text('{"who":"u1"}\n{"who":" "}\n{"who":7}\n')
    pq.write_table(pa.table({"who": ["u1", None, "7"]}), tmp_path / "a.parquet")
    for file in tmp_path.iterdir():
        assert sorted(row.key for row in read_keys(spark, str(file), "who").collect()) == ["7", "u1"]
    (tmp_path / "b.csv").write_text("who\nu1\nu2,u3\n")
    with pytest.raises(UserError, match=r"b\.csv holds a line that cannot be read, so its key would .*: 'u2,u3'$"):
        read_keys(spark, str(tmp_path / "b.csv"), "who")
