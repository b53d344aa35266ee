"""The ETL against a plain-Python oracle, its determinism, its rejections and its refusals."""

import gzip
import html
import json
import random
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from pad_dist.config import Config
from pad_dist.config_file import parse_config
from pad_dist.data.manifest import Manifest, read_manifest, verify_file
from pad_dist.errors import UserError
from spark_jobs.build_sequences import build_sequences, main

SHARDS = 3


class Event(NamedTuple):
    user: str
    item: str
    time: int
    rating: int


def random_events(rng: random.Random) -> list[Event]:
    """Messy order, equal times, skewed items, users too short to stay."""
    users = [f"u{n}" for n in range(60)]
    return [
        Event(user, f"i{int(rng.paretovariate(0.7)) % 45:02}", rng.randrange(30), rng.randint(1, 5))
        for user in rng.sample(users, len(users))
        for _ in range(rng.randint(1, 18))
    ]


CATALOGUE: list[tuple[str, str | None]] = [
    *[(f"i{n:02}", f"Title &amp; more  {n}") for n in range(5, 50)],
    *[("i03", None), ("i04", "  "), ("i01", "&nbsp;"), ("i10", "A first"), ("i10", None), ("i11", "Zlast")],
]


def config_for(folder: Path, **data: Any) -> Config:
    columns = {"user": "user", "item": "item", "time": "time", "rating": "rating"}
    inputs = {"interactions": f"{folder}/events.csv", "items": f"{folder}/items.csv"}
    values = {**inputs, "columns": columns, "shards": SHARDS, "min_interactions": 3, **data}
    return parse_config({"name": "t", "dataset": f"{folder}/dataset", "data": values}, "test")


def write_inputs(
    folder: Path, events: Sequence[Event], catalogue: Sequence[tuple[str, str | None]] = CATALOGUE
) -> None:
    lines = [",".join(map(str, event)) for event in events]
    (folder / "events.csv").write_text("\n".join(["user,item,time,rating", *lines]) + "\n")
    lines = [f"{key},{text or ''}" for key, text in catalogue]
    (folder / "items.csv").write_text("\n".join(["item,title", *lines]) + "\n")


def read_items(dataset: str, manifest: Manifest) -> dict[str, list[Any]]:
    files = [pq.read_table(f"{dataset}/{file.path}") for file in manifest.groups["items"]]
    return dict(pa.concat_tables(files).to_pydict())


def read_sequences(dataset: str, manifest: Manifest) -> list[list[tuple[str, list[int]]]]:
    """(user_key, items) of each shard."""
    shards = [pq.read_table(f"{dataset}/{file.path}").to_pydict() for file in manifest.groups["sequences"]]
    return [list(zip(shard["user_key"], shard["items"], strict=True)) for shard in shards]


def expected_sequences(events: Sequence[Event], data: Any) -> dict[str, list[str]]:
    histories: dict[str, list[tuple[int, str]]] = {}
    for event in events:
        if data.min_rating is None or event.rating >= data.min_rating:
            histories.setdefault(event.user, []).append((event.time, event.item))
    kept = {}
    for user, history in sorted(histories.items()):
        if len(history) >= data.min_interactions:
            items = [item for _, item in sorted(history)]
            kept[user] = items[-data.keep_last :] if data.max_history and len(items) > data.max_history else items
    return kept


def expected_items(sequences: dict[str, list[str]]) -> dict[str, list[Any]]:
    texts: dict[str, str] = {}
    for key, raw in sorted((key, raw) for key, raw in CATALOGUE if raw and raw.strip()):
        texts.setdefault(key, " ".join(html.unescape(raw).split()))
    seen = {item for items in sequences.values() for item in items}
    keys = sorted({key for key, _ in CATALOGUE} | seen)
    frequency = Counter(item for items in sequences.values() for item in items[:-2])
    bins, current, mass = dict.fromkeys(keys, 10), 1, 0
    for key in sorted((k for k in keys if frequency[k]), key=lambda k: (-frequency[k], k)):
        bins[key] = current
        mass += frequency[key]
        if current < 10 and 10 * mass >= frequency.total():
            current, mass = current + 1, 0
    return {
        "item_key": keys,
        "item_index": list(range(1, len(keys) + 1)),
        "train_frequency": [frequency[key] for key in keys],
        "bin": [bins[key] for key in keys],
        "text": [texts.get(key) or key for key in keys],
    }


@pytest.mark.parametrize("seed", range(3))
def test_the_dataset_equals_the_plain_python_oracle(spark: SparkSession, tmp_path: Path, seed: int) -> None:
    rules = [
        {},
        {"min_rating": 3, "max_history": 8, "keep_last": 6},
        {"min_interactions": 9, "max_history": 9, "keep_last": 9},
    ]
    events = random_events(random.Random(seed))
    write_inputs(tmp_path, events)
    config = config_for(tmp_path, **rules[seed])
    manifest = build_sequences(config, spark)

    sequences = expected_sequences(events, config.data)
    items = expected_items(sequences)
    assert read_items(config.dataset, manifest) == items
    index = dict(zip(items["item_key"], items["item_index"], strict=True))
    assert read_sequences(config.dataset, manifest) == [
        [(u, [index[i] for i in s]) for u, s in sequences.items() if zlib.crc32(u.encode()) % SHARDS == shard]
        for shard in range(SHARDS)
    ]
    assert manifest.counts == {
        "users": len(sequences),
        "items": len(index),
        "interactions": sum(map(len, sequences.values())),
        "raw_events": len(events),
        "items_without_text": sum(text == key for key, text in zip(items["item_key"], items["text"], strict=True)),
        "duplicate_item_rows": 3,
    }
    assert manifest.rejected == {}


def test_files_and_manifest_agree(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spark_jobs.build_sequences.ITEMS_PER_FILE", 20)
    write_inputs(tmp_path, random_events(random.Random(7))[:100])
    config = config_for(tmp_path, shards=12)
    manifest = build_sequences(config, spark)
    assert read_manifest(config.dataset, "build") == manifest
    assert [file.first_index for file in manifest.groups["items"]] == [1, 21, 41]
    assert [file.path for file in manifest.groups["sequences"]] == [
        f"sequences/part-{n:05d}.parquet" for n in range(12)
    ]
    for file in [*manifest.groups["items"], *manifest.groups["sequences"]]:
        verify_file(config.dataset, file)
        content = Path(config.dataset, file.path)
        assert (content.stat().st_size, pq.read_metadata(content).num_rows) == (file.bytes, file.rows)
    # Several files give the same bins as one.
    monkeypatch.undo()
    assert read_items(config.dataset, manifest) == read_items(config.dataset, build_sequences(config, spark))


def test_partitions_input_order_and_format_do_not_change_the_content(spark: SparkSession, tmp_path: Path) -> None:
    rng = random.Random(5)
    events = random_events(rng)
    write_inputs(tmp_path, events)
    config = config_for(tmp_path)
    first = build_sequences(config, spark).content_hash()

    (tmp_path / "parts").mkdir()
    rng.shuffle(events)
    for n in range(5):
        pq.write_table(pa.Table.from_pylist([e._asdict() for e in events[n::5]]), tmp_path / "parts" / f"{n}.parquet")
    settings = {"spark.sql.shuffle.partitions": "5", "spark.sql.execution.arrow.maxRecordsPerBatch": "3"}
    settings |= {"spark.sql.adaptive.enabled": "false", "spark.sql.autoBroadcastJoinThreshold": "-1"}
    before = {key: spark.conf.get(key) for key in settings}
    try:
        for key, value in settings.items():
            spark.conf.set(key, value)
        again = build_sequences(config_for(tmp_path, interactions=f"{tmp_path}/parts"), spark)
    finally:
        for key, old in before.items():
            spark.conf.set(key, str(old))
    assert again.content_hash() == first
    write_inputs(tmp_path, events[1:])
    assert build_sequences(config, spark).content_hash() != first


def test_held_out_items_leave_frequencies_and_bins_unchanged(spark: SparkSession, tmp_path: Path) -> None:
    events = random_events(random.Random(3))
    config = config_for(tmp_path)
    write_inputs(tmp_path, events)
    before = read_items(config.dataset, build_sequences(config, spark))

    ordered = {u: sorted((e.time, e.item, e) for e in events if e.user == u) for u in {e.user for e in events}}
    last_two = {e for history in ordered.values() for _, _, e in history[-2:]}
    # Later than everything, so that the changed items stay the last two.
    changed = [e._replace(item="i49", time=100) if e in last_two else e for e in events]
    assert sum(a != b for a, b in zip(events, changed, strict=True)) > 50
    write_inputs(tmp_path, changed)
    after = read_items(config.dataset, build_sequences(config, spark))
    common = [key for key in before["item_key"] if key in after["item_key"]]
    for name in ("train_frequency", "bin"):
        old, new = (dict(zip(t["item_key"], t[name], strict=True)) for t in (before, after))
        assert [old[key] for key in common] == [new[key] for key in common]


def test_unreadable_rows_are_counted_and_set_aside(spark: SparkSession, tmp_path: Path) -> None:
    events = random_events(random.Random(1))
    write_inputs(tmp_path, events)
    clean = build_sequences(config_for(tmp_path), spark)
    bad = ["u1,i05", "u1,i05,1,5,6", ",i05,1,5", "u1, ,1,5", "u1,i05,,5", "u1,i05,yesterday,5"]
    with (tmp_path / "events.csv").open("a") as file:
        file.write("\n".join(bad) + "\n")
    with (tmp_path / "items.csv").open("a") as file:
        file.write(",no key\n")
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
    assert manifest.counts["raw_events"] == len(events) + len(bad)
    lines = (tmp_path / "dataset" / "rejected" / "interactions.jsonl").read_text().splitlines()
    assert {"reason": "line is corrupt", "row": "u1,i05,1,5,6"} in map(json.loads, lines)
    assert len(lines) == len(bad)
    # Once the input is mended, nothing stays set aside.
    write_inputs(tmp_path, events)
    assert build_sequences(config_for(tmp_path), spark).content_hash() == clean.content_hash()
    assert not list((tmp_path / "dataset" / "rejected").iterdir())


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_too_many_unreadable_rows_fail_and_leave_the_old_dataset(spark: SparkSession, tmp_path: Path) -> None:
    events = random_events(random.Random(1))[:199]
    write_inputs(tmp_path, events)
    build_sequences(config_for(tmp_path), spark)
    before = files_of(tmp_path / "dataset")
    (tmp_path / "events.csv").write_text((tmp_path / "events.csv").read_text() + "u1,i05,soon,5\n")
    build_sequences(config_for(tmp_path, max_rejected_share=0.005), spark)
    with pytest.raises(
        UserError,
        match=r"^1 of 200 rows \(0\.5%\) of .*events\.csv are unreadable \(time is not a number: 1\), more than "
        r"data\.max_rejected_share=0\.004 allows: see .*dataset/rejected/interactions\.jsonl",
    ):
        build_sequences(config_for(tmp_path, max_rejected_share=0.004), spark)
    after = files_of(tmp_path / "dataset")
    row = json.loads(after.pop("rejected/interactions.jsonl"))
    assert json.loads(row["row"])["time"] == "soon"
    assert after.keys() == before.keys()
    assert read_manifest(f"{tmp_path}/dataset", "build").rejected == {"interactions: time is not a number": 1}
    assert not (tmp_path / "dataset.staging").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"min_rating": 6}, r"\d+ events read, 0 of them unreadable, 0 left by data\.min_rating=6$"),
        (
            {"min_rating": 5, "min_interactions": 50},
            r", 87 left by data.min_rating=5, 0 left by data.min_interactions=50 \(the longest history has \d ev",
        ),
        ({"interactions": "{}/none.csv"}, r"none\.csv does not exist; .* holds events\.csv, items\.csv$"),
        ({"items": "{}/none.csv"}, r"none\.csv does not exist"),
        ({"interactions": "{}/cut.csv.gz"}, r"cut\.csv\.gz cannot be read, .* is truncated"),
        (
            {"columns": {"user": "customer"}},
            r"no column 'customer'; it has user, item, time, rating: set data\.columns$",
        ),
        ({"columns": {"text": "name"}}, r"items\.csv has no column 'name'; it has item, title"),
        ({"interactions": ""}, r"data\.interactions is not set"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    spark: SparkSession, tmp_path: Path, data: dict[str, Any], message: str
) -> None:
    write_inputs(tmp_path, random_events(random.Random(2)))
    if "cut" in str(data):
        packed = gzip.compress((tmp_path / "events.csv").read_bytes())
        (tmp_path / "cut.csv.gz").write_bytes(packed[: len(packed) // 2])
    filled = {key: value.format(tmp_path) if isinstance(value, str) else value for key, value in data.items()}
    before = files_of(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        build_sequences(config_for(tmp_path, **filled), spark)
    assert "\n" not in str(error.value)
    assert files_of(tmp_path) == before
    assert not (tmp_path / "dataset").exists()


def test_a_failure_while_writing_leaves_the_old_dataset_whole(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_inputs(tmp_path, random_events(random.Random(4)))
    build_sequences(config_for(tmp_path), spark)
    before = files_of(tmp_path)

    def fail(*_: object) -> None:
        assert list((tmp_path / "dataset.staging" / "items").iterdir())
        raise OSError("no space left on device")

    monkeypatch.setattr("spark_jobs.build_sequences.write_sequences", fail)
    with pytest.raises(OSError, match="no space left"):
        build_sequences(config_for(tmp_path), spark)
    assert files_of(tmp_path) == before
    assert not (tmp_path / "dataset.staging").exists()


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


def test_prime_pantry_has_the_published_counts_and_cuts(spark: SparkSession, tmp_path: Path, shared_data: Path) -> None:
    inputs = {name: f"{shared_data}/prime-pantry/{name}.csv.gz" for name in ("interactions", "items")}
    config = config_for(tmp_path, **inputs, columns={"time": "position"}, min_interactions=5, shards=8)
    manifest = build_sequences(config, spark)
    assert manifest.counts == {
        "users": 12871,
        "items": 8347,
        "interactions": 115004,
        "raw_events": 115004,
        "items_without_text": 0,
        "duplicate_item_rows": 0,
    }
    assert manifest.parameters["bin_cuts"] == [0, 35, 100, 205, 361, 585, 898, 1357, 2074, 3348, 8347]
    bins = Counter(read_items(config.dataset, manifest)["bin"])
    assert [bins[b] for b in range(1, 11)] == [35, 65, 105, 156, 224, 313, 459, 717, 1274, 4999]
