"""What the ETL sets aside and what it refuses: one line, and the dataset as it was. And what is odd but right."""

import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pyspark.sql import SparkSession

from pad_dist.config import Config
from pad_dist.dataset import versions
from pad_dist.dataset.reader import Dataset
from pad_dist.errors import UserError
from spark_jobs.build_sequences import build_sequences, main
from tests.support.events import CATALOGUE, Event, by_key, config_for, random_events, read_items, write_inputs

pytestmark = pytest.mark.slow

HEADER = "user,item,time,rating"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def refused(config: Config, spark: SparkSession, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build_sequences(config, spark)
    assert "\n" not in str(error.value)


def test_unreadable_rows_are_counted_set_aside_and_refused_where_many(spark: SparkSession, tmp_path: Path) -> None:
    events = random_events(random.Random(1))
    write_inputs(tmp_path, events)
    dataset = tmp_path / "dataset"
    clean = build_sequences(config_for(tmp_path), spark)
    before = files_of(dataset)
    bad = ["u1,i05", "u1,i05,1,5,6", ",i05,1,5", "u1, ,1,5", "u1,i05,,5", "u1,i05,yesterday,5"]
    with (tmp_path / "events.csv").open("a") as file:
        file.write("\n".join(bad) + "\n")
    with (tmp_path / "items.csv").open("a") as file:
        file.write(",no key\n")

    rows = len(events) + len(bad)
    refused(
        config_for(tmp_path, max_rejected_share=0.005),
        spark,
        rf"^6 of {rows} rows \(1\.0%\) of .*events\.csv are unreadable \(item is blank: 1, line is corrupt: 2, .*\), "
        r"more than data\.max_rejected_share=0\.005 allows: see .*dataset/rejected/interactions\.jsonl, mend",
    )
    after = files_of(dataset)
    lines = after.pop("rejected/interactions.jsonl").decode().splitlines()
    assert {"reason": "line is corrupt", "row": "u1,i05,1,5,6"} in map(json.loads, lines) and len(lines) == len(bad)
    assert after == before

    manifest = build_sequences(config_for(tmp_path, max_rejected_share=0.1), spark)
    assert manifest.rejected == {
        "interactions: item is blank": 1,
        "interactions: line is corrupt": 2,
        "interactions: time is blank": 1,
        "interactions: time is not a number": 1,
        "interactions: user is blank": 1,
        "items: item is blank": 1,
    }
    assert manifest.groups == clean.groups
    assert manifest.counts["raw_events"] == rows
    version = Path(versions.resolve(str(dataset)))
    assert (version / "rejected" / "interactions.jsonl").read_text().splitlines() == lines
    assert len((version / "rejected" / "items.jsonl").read_text().splitlines()) == 1
    assert not (dataset / "rejected").exists()  # it told of a build that was refused


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"min_rating": 6}, r"\d+ events read, 0 of them unreadable, 0 left by data\.min_rating=6$"),
        (
            {"min_rating": 5, "min_interactions": 50},
            r", 87 left by data.min_rating=5, 0 left by data.min_interactions=50 \(the longest history has \d ev",
        ),
        (
            {"interactions": "{}/none.csv"},
            r"none\.csv does not exist; .* holds .*events\.csv, header\.csv, items\.csv$",
        ),
        ({"items": "{}/none.csv"}, r"none\.csv does not exist"),
        ({"interactions": "{}/cut.csv.gz"}, r"cut\.csv\.gz cannot be read, .* truncated or damaged.*: copy it again$"),
        (
            {"interactions": "{}/header.csv"},
            r"no history is left of .*header\.csv: 0 events read, 0 of them unreadable$",
        ),
        (
            {"columns": {"user": "customer"}},
            r"no column 'customer'; it has user, item, time, rating: set data\.columns$",
        ),
        ({"columns": {"text": "name"}}, r"items\.csv has no column 'name'; it has item, title"),
        ({"interactions": ""}, r"data\.interactions is not set"),
        (
            {"split": {"kind": "time", "valid_from": 40, "test_from": 50}},
            r"^no user has a validation target: check data\.split and data\.min_interactions$",
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    spark: SparkSession, tmp_path: Path, data: dict[str, Any], message: str
) -> None:
    write_inputs(tmp_path, random_events(random.Random(2)))
    packed = gzip.compress((tmp_path / "events.csv").read_bytes())
    (tmp_path / "cut.csv.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "header.csv").write_text(HEADER + "\n")
    filled = {key: value.format(tmp_path) if isinstance(value, str) else value for key, value in data.items()}
    before = files_of(tmp_path)
    refused(config_for(tmp_path, **filled), spark, message)
    assert files_of(tmp_path) == before
    assert not list(tmp_path.glob("dataset/*/*"))


class Daily(NamedTuple):
    folder: Path
    config: Config

    def write(self, **lines: Sequence[str]) -> None:
        for name, rows in lines.items():
            (self.folder / "events" / f"{name}.csv").write_text("".join(f"{line}\n" for line in rows))


@pytest.fixture(scope="module")
def daily(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Daily:
    """A dataset of one version, of one file of events, in a directory with files of other people."""
    folder = tmp_path_factory.mktemp("daily")
    this = Daily(folder, config_for(folder, interactions=f"{folder}/events"))
    write_inputs(folder, [], CATALOGUE)
    (folder / "events").mkdir()
    this.write(first=[HEADER, *(",".join(map(str, event)) for event in random_events(random.Random(3)))])
    (folder / "dataset" / "notes").mkdir(parents=True)
    (folder / "dataset" / "notes" / "theirs.txt").write_text("kept")
    build_sequences(this.config, spark)
    return this


def test_bad_new_files_leave_the_current_version(spark: SparkSession, daily: Daily) -> None:
    events = daily.folder / "events"

    def check(message: str, config: Config = daily.config) -> None:
        refused(config, spark, message)
        after = files_of(daily.folder / "dataset")
        after.pop("rejected/interactions.jsonl", None)
        assert after == before
        assert len(list((daily.folder / "dataset" / "versions").iterdir())) == 1
        for file in set(events.iterdir()) - {events / "first.csv"}:
            file.unlink()

    before = files_of(daily.folder / "dataset")
    assert before["notes/theirs.txt"] == b"kept"
    daily.write(second=["user,product,time,rating", "u1,i05,1,5"])
    check(r"events/second\.csv, of .*/events, has no column 'item'; it has user, product, time, rating: set data\.col")
    daily.write(second=[HEADER, "u1,i05,1,5"], third=["user,product,time,rating", "u1,i05,1,5"])
    check(
        r"columns change between files: .*third\.csv has no 'item', which .*second\.csv has; new in it: 'product': wr"
    )
    daily.write(second=[HEADER, "u1,i05,1600000000000,5", "u1,i05,-1,5", ",i05,1,5"])
    check(
        r"^3 of 3 rows \(100\.0%\) of .* are unreadable \(time is negative: 1, time looks like milliseconds: set "
        r"data\.time_unit=ms: 1, user is blank: 1\), more than data\.max_rejected_share"
    )
    rng = random.Random(1)
    lines = "".join(f"u{rng.random()},i05,{n},5\n" for n in range(100))
    for n in range(20):
        packed = bytearray(gzip.compress(f"{HEADER}\n{lines}".encode()))
        if n in (7, 13):
            packed[-6] ^= 1  # the checksum
        (events / f"{n:02}.csv.gz").write_bytes(packed)
    check(
        r"events cannot be read, \S*/07\.csv\.gz, \S*/13\.csv\.gz \(2 of 21 files\) are truncated or damaged: copy them"
    )
    (daily.folder / "other").mkdir(exist_ok=True)
    (daily.folder / "other" / "events.csv").write_text(HEADER + "\n")
    other = config_for(daily.folder, interactions=f"{daily.folder}/other")
    check(
        r"data\.interactions=\S*/other shares no file with \S*/events, which version 000001-.*: set dataset to", other
    )


def test_files_without_rows_and_a_catalogue_that_lost_some_take_nothing_away(spark: SparkSession, daily: Daily) -> None:
    rows, items = by_key(daily.config.dataset)
    daily.write(empty=[], header=[HEADER])
    write_inputs(daily.folder, [], CATALOGUE[20:21])
    manifest = build_sequences(daily.config, spark)
    assert len(versions.published(daily.config.dataset)) == 2
    assert by_key(daily.config.dataset) == (rows, items)
    assert items["i10"][2] == "A first"  # no longer in the catalogue
    assert manifest.rejected == {}
    assert (daily.folder / "dataset" / "notes" / "theirs.txt").read_text() == "kept"


KEYS = [
    "Ann",
    "ann",
    "Ann ",
    " Ann",
    "Ann\n",
    "Ann\t",
    'A"n,n',
    "A'n\\n",
    "An\0n",
    "😀",
    "\u00e9",
    "e\u0301",
    "null",
    "0",
    "00",
]


def test_keys_of_any_characters_stay_apart_and_erased_ones_leave_no_rejected_row(
    spark: SparkSession, tmp_path: Path
) -> None:
    rng = random.Random(6)
    users, items = [*KEYS, "zqx\n\0"], [*KEYS, "zqx \U0001f47b"]
    events = [Event(user, rng.choice(items), time, 5) for user in users for time in range(8)]
    rng.shuffle(events)
    (tmp_path / "events").mkdir()
    bad = [{"user": users[-1], "item": "0"}, {"user": "0", "item": items[-1]}, {"user": "0", "item": "00"}]
    for number, rows in enumerate((events[::2], events[1::2])):
        rows = [event._asdict() for event in rows] + bad
        (tmp_path / "events" / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if number == 0:
            listed = [{"item": key, "title": f"Title {place}"} for place, key in enumerate(items)]
            listed.append({"title": "of no item"})
            (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
            inputs = {"interactions": f"{tmp_path}/events", "items": f"{tmp_path}/items.jsonl"}
            build_sequences(config_for(tmp_path, max_rejected_share=1, **inputs), spark)
            assert sorted(read_items(f"{tmp_path}/dataset")["item_key"]) == sorted(items)
    (tmp_path / "users.jsonl").write_text(json.dumps({"user": users[-1]}))
    (tmp_path / "items_gone.jsonl").write_text(json.dumps({"item": items[-1]}))
    lists = {"erase_users": f"{tmp_path}/users.jsonl", "erase_items": f"{tmp_path}/items_gone.jsonl"}
    config = config_for(tmp_path, max_rejected_share=1, **inputs, **lists)
    manifest = build_sequences(config, spark)

    found, described = by_key(config.dataset)
    expected = {
        user: [e.item for e in sorted(events, key=lambda e: (e.time, e.item.encode())) if e.user == user]
        for user in KEYS
    }
    expected = {user: [item for item in history if item != items[-1]] for user, history in expected.items()}
    assert {row["user_key"]: row["items"] for row in found} == expected
    assert {key: described[key][2] for key in KEYS} == {key: f"Title {place}" for place, key in enumerate(KEYS)}
    assert Dataset.open(config.dataset).users == len(KEYS)

    # Counted in both builds; but their rows are nowhere in what this one wrote.
    assert manifest.rejected["interactions: time is blank"] == 6
    folder = Path(versions.resolve(config.dataset))
    (line,) = (folder / "rejected" / "interactions.jsonl").read_text().splitlines()
    assert json.loads(json.loads(line)["row"])["item"] == "00"
    texts = {name: content for name, content in files_of(folder).items() if not name.endswith(".parquet")}
    assert texts.keys() >= {"manifest.json", "quality.json", "quality.html", "rejected/interactions.jsonl"}
    assert [name for name, content in texts.items() if b"zqx" in content] == []


def test_a_catalogue_may_hold_one_item(spark: SparkSession, tmp_path: Path) -> None:
    write_inputs(tmp_path, [Event("u", "i", time, 5) for time in range(5)], [("i", "The item")])
    config = config_for(tmp_path)
    build_sequences(config, spark)
    assert read_items(config.dataset) == {
        "item_key": ["i"],
        "item_index": [1],
        "train_frequency": [3],
        "bin": [1],
        "text": ["The item"],
    }
    assert Dataset.open(config.dataset).users == 1


def test_the_command_prints_the_counts_or_one_error_line(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_inputs(tmp_path, random_events(random.Random(2)))
    config = tmp_path / "run.yaml"
    config.write_text(f"name: t\ndataset: {tmp_path}/dataset\ndata: {{interactions: {tmp_path}/events.csv}}\n")
    # The session is shared: its other settings must stay.
    few = "data.spark_conf={spark.sql.shuffle.partitions: '2'}"
    arguments = ["--config", str(config), f"data.items={tmp_path}/items.csv", few]
    main(arguments)
    assert "users" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "data.min_interactions=40"])
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("pad-dist: error: no history is left of")
