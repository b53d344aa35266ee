"""Every format gives the same typed rows; every kind of bad input one clear line."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from pad_dist.config import DataConfig
from pad_dist.config_file import parse_config
from pad_dist.data.lineage import input_files
from pad_dist.errors import UserError
from spark_jobs.inputs import check_rejected, read_catalogue, read_events, read_keys, reading, set_aside

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


def test_erasure_lists_come_in_every_format(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("who,why\nu1,x\n,y\n7,\n")
    (tmp_path / "a.jsonl").write_text('{"who":"u1"}\n{"who":" "}\n{"who":7}\n')
    pq.write_table(pa.table({"who": ["u1", None, "7"]}), tmp_path / "a.parquet")
    for file in tmp_path.iterdir():
        assert sorted(row.key for row in read_keys(spark, str(file), "who").collect()) == ["7", "u1"]
    (tmp_path / "b.csv").write_text("who\nu1\nu2,u3\n")
    with pytest.raises(UserError, match=r"b\.csv holds a line that cannot be read, so its key would .*: 'u2,u3'$"):
        read_keys(spark, str(tmp_path / "b.csv"), "who")


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
