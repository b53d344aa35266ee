"""The ETL against a plain-Python oracle, and its determinism."""

import random
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from pad_dist.dataset import versions
from pad_dist.dataset.manifest import read_manifest, verify_file
from spark_jobs.build_sequences import build_sequences
from tests.support.events import (
    SHARDS,
    config_for,
    expected_items,
    expected_sequences,
    kept_events,
    random_events,
    read_items,
    read_sequences,
    write_inputs,
)

pytestmark = pytest.mark.slow


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
    kept = kept_events(events, config.data)
    items = expected_items(sequences, {event.item for event in kept})
    assert read_items(config.dataset) == items
    index = dict(zip(items["item_key"], items["item_index"], strict=True))
    assert read_sequences(config.dataset) == [
        [(u, [index[i] for i in s]) for u, s in sequences.items() if zlib.crc32(u.encode()) % SHARDS == shard]
        for shard in range(SHARDS)
    ]
    assert manifest.counts == {
        "users": len(sequences),
        "items": len(index),
        "interactions": sum(map(len, sequences.values())),
        "train_users": sum(len(items) > 3 for items in sequences.values()),
        "valid_users": len(sequences),
        "test_users": len(sequences),
        "events": len({event[:3] for event in kept}),
        "raw_events": len(events),
        "below_min_rating": len(events) - len(kept),
        "items_without_text": sum(text == key for key, text in zip(items["item_key"], items["text"], strict=True)),
        "duplicate_item_rows": 3,
    }
    assert manifest.rejected == {}


def test_files_and_manifest_agree(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spark_jobs.items.ITEMS_PER_FILE", 20)
    write_inputs(tmp_path, random_events(random.Random(7))[:100])
    config = config_for(tmp_path, shards=12)
    manifest = build_sequences(config, spark)
    folder = versions.resolve(config.dataset)
    assert read_manifest(folder, "build") == manifest
    assert [file.first_index for file in manifest.groups["items"]] == [1, 21, 41]
    assert [file.path for file in manifest.groups["sequences"]] == [
        f"sequences/part-{n:05d}.parquet" for n in range(12)
    ]
    for file in [file for group in ("items", "sequences", "events") for file in manifest.groups[group]]:
        verify_file(folder, file)
        content = Path(folder, file.path)
        assert (content.stat().st_size, pq.read_metadata(content).num_rows) == (file.bytes, file.rows)
    # Several files give the same bins as one.
    monkeypatch.undo()
    several = read_items(config.dataset)
    again = config_for(tmp_path, shards=12, incremental=False)
    build_sequences(again, spark)
    assert read_items(again.dataset) == several


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
        other = config_for(tmp_path, interactions=f"{tmp_path}/parts", dataset="other")
        again = build_sequences(other, spark)
    finally:
        for key, old in before.items():
            spark.conf.set(key, str(old))
    assert again.content_hash() == first
    write_inputs(tmp_path, events[1:])
    assert build_sequences(config, spark).content_hash() != first


def test_held_out_items_leave_frequencies_and_bins_unchanged(spark: SparkSession, tmp_path: Path) -> None:
    # Each event once: of two alike only one would be changed.
    events = list({event[:3]: event for event in random_events(random.Random(3))}.values())
    config = config_for(tmp_path)
    write_inputs(tmp_path, events)
    build_sequences(config, spark)
    before = read_items(config.dataset)

    ordered = {u: sorted((e.time, e.item, e) for e in events if e.user == u) for u in {e.user for e in events}}
    last_two = {e for history in ordered.values() for _, _, e in history[-2:]}
    # Later than everything, so that the changed items stay the last two.
    changed = [e._replace(item="i49", time=100 + n) if e in last_two else e for n, e in enumerate(events)]
    assert sum(a != b for a, b in zip(events, changed, strict=True)) > 50
    write_inputs(tmp_path, changed)
    build_sequences(config, spark)
    after = read_items(config.dataset)
    common = [key for key in before["item_key"] if key in after["item_key"]]
    for name in ("train_frequency", "bin"):
        old, new = (dict(zip(t["item_key"], t[name], strict=True)) for t in (before, after))
        assert [old[key] for key in common] == [new[key] for key in common]
