"""Reruns: what grows equals what is built from everything, and nothing is lost on the way."""

import random
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from pad_dist.config import Config
from pad_dist.dataset import versions
from pad_dist.dataset.manifest import Manifest, read_manifest
from pad_dist.dataset.reader import Dataset
from pad_dist.errors import UserError
from spark_jobs.build_sequences import build_sequences
from tests.support.events import (
    CATALOGUE,
    Event,
    by_key,
    config_for,
    random_events,
    read_group,
    read_items,
    write_inputs,
)

pytestmark = pytest.mark.slow


def write_events(folder: Path, name: str, events: Sequence[Event]) -> None:
    (folder / "events").mkdir(exist_ok=True)
    lines = [",".join(map(str, event)) for event in events]
    (folder / "events" / name).write_text("\n".join(["user,item,time,rating", *lines]) + "\n")


def daily(folder: Path, dataset: str = "dataset", **data: Any) -> Config:
    return config_for(folder, dataset, interactions=f"{folder}/events/*.csv", **data)


def current(config: Config) -> Manifest:
    return read_manifest(versions.resolve(config.dataset), "the test")


RULES: list[dict[str, Any]] = [
    {},
    {"min_rating": 3, "max_history": 8, "keep_last": 6, "min_interactions": 5},
    {"split": {"kind": "time", "valid_from": 15, "test_from": 22}},
    {"min_item_interactions": 4},
]


@pytest.mark.parametrize("seed", range(4))
def test_a_grown_dataset_equals_one_built_from_everything(spark: SparkSession, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    events = random_events(rng)
    # Late, repeated and out of order: any event may come on any day, some come twice.
    days = [rng.sample(events, len(events) // 2), events]
    write_inputs(tmp_path, [], CATALOGUE[:30])
    config = daily(tmp_path, **RULES[seed])
    for number, day in enumerate(days):
        write_events(tmp_path, f"day-{number}.csv", day)
        if number == 1:
            write_inputs(tmp_path, [], CATALOGUE)
            shutil.copytree(tmp_path / "dataset", tmp_path / "rebuilt")
        build_sequences(config, spark)
    assert len(versions.published(config.dataset)) == 2

    # From the version before, but reading everything: the same to the byte.
    rebuilt = build_sequences(daily(tmp_path, "rebuilt", incremental=False, **RULES[seed]), spark)
    assert rebuilt.content_hash() == current(config).content_hash()
    # From nothing: the same but for the numbers of the items.
    scratch = daily(tmp_path, "scratch", **RULES[seed])
    build_sequences(scratch, spark)
    (rows, items), (scratch_rows, scratch_items) = by_key(config.dataset), by_key(scratch.dataset)
    assert rows == scratch_rows
    assert {key: columns for key, columns in items.items() if columns[1]} == scratch_items
    counts, scratch_counts = current(config).counts, current(scratch).counts
    assert counts["items"] >= scratch_counts["items"]
    assert counts == scratch_counts | {"items": counts["items"]} | {
        name: counts[name] for name in ("raw_events", "below_min_rating")
    }
    assert counts["raw_events"] == sum(map(len, days))
    Dataset.open(config.dataset).sequences(0)


def test_known_items_keep_their_index_and_new_ones_follow_in_key_order(spark: SparkSession, tmp_path: Path) -> None:
    write_inputs(tmp_path, [], [("m", "M"), ("c", "C")])
    write_events(tmp_path, "1.csv", [Event("u", item, time, 5) for time, item in enumerate(["m", "x", "c", "c"])])
    config = daily(tmp_path)
    build_sequences(config, spark)
    write_events(tmp_path, "2.csv", [Event("u", item, 9, 5) for item in ["z", "a", "m"]])
    build_sequences(config, spark)
    items = read_items(config.dataset)
    assert items["item_key"] == ["c", "m", "x", "a", "z"]
    assert items["item_index"] == [1, 2, 3, 4, 5]
    assert [entry[0] for entry in current(config).parameters["item_map"]] == [3, 5]
    (row,) = [row for shard in read_group(config.dataset, "sequences") for row in shard["items"]]
    assert row == [2, 3, 1, 1, 4, 2, 5]


def test_a_rerun_without_anything_new_publishes_nothing(spark: SparkSession, tmp_path: Path) -> None:
    write_inputs(tmp_path, [])
    write_events(tmp_path, "1.csv", random_events(random.Random(1)))
    config = daily(tmp_path)
    first = build_sequences(config, spark)
    assert build_sequences(config, spark) == first
    assert len(versions.published(config.dataset)) == 1


def test_readers_keep_the_version_they_opened(spark: SparkSession, tmp_path: Path) -> None:
    write_inputs(tmp_path, [])
    events = random_events(random.Random(1))
    write_events(tmp_path, "1.csv", events[:200])
    config = daily(tmp_path)
    build_sequences(config, spark)
    reader = Dataset.open(config.dataset)
    write_events(tmp_path, "2.csv", events[200:])
    build_sequences(config, spark)
    assert sum(len(reader.sequences(shard).offsets) - 1 for shard in range(3)) == reader.users
    assert Dataset.open(config.dataset).users > reader.users


@pytest.mark.parametrize("data", [{"min_interactions": 7}, RULES[2], {"max_history": 5, "keep_last": 4}])
def test_other_rules_on_the_same_events_equal_a_build_with_them(
    spark: SparkSession, tmp_path: Path, data: dict[str, Any]
) -> None:
    write_inputs(tmp_path, [])
    write_events(tmp_path, "1.csv", random_events(random.Random(2)))
    build_sequences(daily(tmp_path), spark)
    config = daily(tmp_path, **data)
    build_sequences(config, spark)
    build_sequences(daily(tmp_path, "scratch", **data), spark)
    assert by_key(config.dataset) == by_key(f"{tmp_path}/scratch")


def test_erased_users_and_items_leave_no_trace_and_items_keep_their_place(spark: SparkSession, tmp_path: Path) -> None:
    events = random_events(random.Random(3))
    write_inputs(tmp_path, [])
    write_events(tmp_path, "1.csv", events[:300])
    build_sequences(daily(tmp_path), spark)
    before = read_items(f"{tmp_path}/dataset")
    (tmp_path / "users.csv").write_text("user\nu3\nu5\nnobody\n")
    (tmp_path / "gone.jsonl").write_text('{"item": "i02"}\n{"item": "i07"}\n')
    lists = {"erase_users": f"{tmp_path}/users.csv", "erase_items": f"{tmp_path}/gone.jsonl"}
    write_events(tmp_path, "2.csv", events[300:])  # tells of them again
    config = daily(tmp_path, **lists)
    shutil.copytree(tmp_path / "dataset", tmp_path / "rebuilt")
    build_sequences(config, spark)
    rebuilt = build_sequences(daily(tmp_path, "rebuilt", incremental=False, **lists), spark)
    assert rebuilt.content_hash() == current(config).content_hash()

    folder = Path(versions.resolve(config.dataset))
    after = read_items(config.dataset)
    places = [before["item_key"].index(key) for key in ("i02", "i07")]
    for place in places:
        assert [after[name][place] for name in ("item_key", "train_frequency", "bin", "text")] == ["", 0, 0, ""]
    known = after["item_key"][: len(before["item_key"])]
    assert [key for key in known if key] == [key for key in before["item_key"] if key not in ("i02", "i07")]
    users = {
        user
        for group in ("sequences", "events")
        for shard in read_group(config.dataset, group)
        for user in shard["user_key"]
    }
    assert users and not users & {"u3", "u5"}
    assert not {p + 1 for p in places} & {
        i for shard in read_group(config.dataset, "events") for row in shard["items"] for i in row
    }
    text = b"".join(file.read_bytes() for file in folder.rglob("*.json*"))
    assert b"i07" not in text and b'"u5"' not in text
    kept = [event for event in events if event.user not in ("u3", "u5") and event.item not in ("i02", "i07")]
    write_inputs(tmp_path, kept, [pair for pair in CATALOGUE if pair[0] not in ("i02", "i07")])
    build_sequences(config_for(tmp_path, "without"), spark)
    rows, items = by_key(config.dataset)
    assert (rows, {key: columns for key, columns in items.items() if key}) == by_key(f"{tmp_path}/without")


def test_the_core_is_what_repeated_filtering_leaves(spark: SparkSession, tmp_path: Path) -> None:
    events = random_events(random.Random(4))
    write_inputs(tmp_path, events)
    config = config_for(tmp_path, min_interactions=4, min_item_interactions=6)
    manifest = build_sequences(config, spark)
    left = {event[:3] for event in events}
    while True:
        users, items = Counter(user for user, _, _ in left), Counter(item for _, item, _ in left)
        kept = {e for e in left if users[e[0]] >= 4 and items[e[1]] >= 6}
        if kept == left:
            break
        left = kept
    rows, catalogue = by_key(config.dataset)
    found = Counter((row["user_key"], item) for row in rows for item in row["items"])
    assert found == Counter((user, item) for user, item, _ in left)
    assert set(catalogue) == {item for _, item, _ in left}
    assert 0 < len(catalogue) < len({item for _, item, _, _ in events})
    assert manifest.counts["interactions"] == len(left)
    assert not (Path(versions.resolve(config.dataset)) / "core").exists()


def first_day(spark: SparkSession, folder: Path) -> tuple[list[Event], Config, Manifest]:
    """Events of which the first 200 are built, the config, and what they were built to."""
    events = random_events(random.Random(5))
    write_inputs(folder, [])
    write_events(folder, "1.csv", events[:200])
    config = daily(folder)
    return events, config, build_sequences(config, spark)


def test_two_builds_at_once_publish_one_version(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events, config, _ = first_day(spark, tmp_path)
    write_events(tmp_path, "2.csv", events[200:])

    def overtaken(*_: object) -> None:
        monkeypatch.undo()
        build_sequences(config, spark)

    monkeypatch.setattr("spark_jobs.build_sequences.write_quality", overtaken)
    with pytest.raises(UserError, match=r"version 000003-\w+ was published while this build grew from 000001-\w+"):
        build_sequences(config, spark)
    assert [versions.number(version) for version in versions.published(config.dataset)] == [1, 3]
    assert len(list((tmp_path / "dataset" / "versions").iterdir())) == 2
    Dataset.open(config.dataset).sequences(0)


def test_an_input_that_changes_while_it_is_read_is_told(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events, config, first = first_day(spark, tmp_path)
    write_events(tmp_path, "2.csv", events[200:250])

    def changing(*arguments: Any) -> Any:
        write_events(tmp_path, "2.csv", events[200:])
        return original(*arguments)

    from spark_jobs import build_sequences as module

    original = module.write_items
    monkeypatch.setattr(module, "write_items", changing)
    with pytest.raises(UserError, match="an input file has changed while it was read"):
        build_sequences(config, spark)
    assert current(config) == first
    assert len(list((tmp_path / "dataset" / "versions").iterdir())) == 1
