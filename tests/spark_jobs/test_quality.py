"""The quality of a version against a count of its rows in plain Python."""

import json
import random
import zlib
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from pad_dist import storage
from pad_dist.dataset.manifest import FileEntry, Manifest, write_manifest
from pad_dist.dataset.quality import ItemKind, Measures, Turnover, build_drift, build_quality
from spark_jobs.quality import SAMPLE_CHARACTERS, SAMPLES, write_quality
from spark_jobs.shards import ITEMS

pytestmark = pytest.mark.slow

SEQUENCES = pa.schema(
    [("user_key", pa.string()), ("items", pa.list_(pa.int64())), ("valid", pa.int32()), ("test", pa.int32())]
)


class Item(NamedTuple):
    item_key: str
    train_frequency: int
    bin: int
    text: str


class Content(NamedTuple):
    """A version: histories with validation and test places, items 1..N, rejected rows."""

    users: dict[str, tuple[list[int], int, int]]
    items: list[Item]
    rejected: list[tuple[str, str]]


def random_content(seed: int, users: int, items: int, known: Content | None = None) -> Content:
    """Grown out of `known`: some users gone, some with other histories, some new; items fall out and return."""
    rng = random.Random(seed)
    inactive = set(rng.sample(range(1, items + 1), items // 5))
    active = sorted(set(range(1, items + 1)) - inactive)
    histories = {}
    for user in rng.sample(range(2 * users), users):
        old = known and known.users.get(f"ü{user}")
        if old and rng.random() < 0.3:
            histories[f"ü{user}"] = old
        else:
            history = rng.choices(active, k=rng.randint(1, 40))
            histories[f"ü{user}"] = history, rng.choice([-1, 0]), rng.choice([-1, len(history) - 1])
    catalogue = []
    for index in range(1, items + 1):
        key = f"k{index}"
        frequency = 0 if index in inactive else rng.choice([0, 1, 5, 300])
        text = rng.choice([key, "Short", f"ä title of {key}"])
        catalogue.append(Item(key, frequency, 0 if index in inactive else rng.randint(1, 10), text))
    rejected = [(rng.choice(["time is blank", "line is corrupt"]), f"row {n}") for n in range(seed * 7)]
    return Content(histories, catalogue, [*rejected, ("line is corrupt", "wide " * 500)])


def write_version(folder: Path, content: Content, shards: int = 3, group: int = 7, item_file: int = 20) -> Manifest:
    """The files of a version but for its manifest.json; the manifest."""
    groups: dict[str, list[FileEntry]] = {"sequences": [], "items": []}
    for shard in range(shards):
        rows = [(u, *h) for u, h in sorted(content.users.items()) if zlib.crc32(u.encode()) % shards == shard]
        groups["sequences"].append(_write(folder, f"sequences/part-{shard}.parquet", rows, SEQUENCES, group))
    rows = [(i.item_key, index, *i[1:]) for index, i in enumerate(content.items, 1)]
    for start in range(0, len(rows), item_file):
        entry = _write(folder, f"items/part-{start}.parquet", rows[start : start + item_file], ITEMS, group)
        groups["items"].append(entry.model_copy(update={"first_index": start + 1}))
    lines = [json.dumps({"reason": reason, "row": row}) for reason, row in content.rejected]
    storage.write_bytes(f"{folder}/rejected/interactions.jsonl", "\n".join(lines).encode())
    events = sum(len(history) for history, _, _ in content.users.values())
    return Manifest(
        counts={"users": len(content.users), "items": len(rows), "interactions": events},
        parameters={},
        groups=groups,
        rejected=Counter(f"interactions: {reason}" for reason, _ in content.rejected),
    )


def _write(folder: Path, path: str, rows: list[Any], schema: pa.Schema, group: int) -> FileEntry:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    columns = zip(*rows, strict=True) if rows else [[]] * len(schema)
    arrays = [pa.array(list(column), field.type) for column, field in zip(columns, schema, strict=True)]
    pq.write_table(pa.table(arrays, schema=schema), folder / path, row_group_size=group)
    return FileEntry(path=path, rows=len(rows), bytes=0, sha256="")


def expected_measures(content: Content) -> Measures:
    kinds = Counter(ItemKind(i.train_frequency, i.bin, i.text != i.item_key) for i in content.items)
    texts = Counter(len(i.text) for i in content.items if i.bin and i.text != i.item_key)
    histories = content.users.values()
    lengths = Counter(len(history) for history, _, _ in histories)
    return Measures(lengths, kinds, texts, sum(v >= 0 for _, v, _ in histories), sum(t >= 0 for _, _, t in histories))


def expected_turnover(before: Content, now: Content) -> Turnover:
    old, new = ({user: len(history) for user, (history, _, _) in c.users.items()} for c in (before, now))
    change = [new.get(user, 0) - old.get(user, 0) for user in {*old, *new}]
    pairs = list(zip(before.items, now.items, strict=False))
    return Turnover(
        new_users=len(new.keys() - old.keys()),
        gone_users=len(old.keys() - new.keys()),
        new_events=sum(c for c in change if c > 0),
        gone_events=-sum(c for c in change if c < 0),
        new_items=len(now.items) - len(before.items),
        gone_items=sum(then.bin > 0 and now.bin == 0 for then, now in pairs),
        returned_items=sum(then.bin == 0 and now.bin > 0 for then, now in pairs),
        events_on_new_items=sum(i > len(before.items) for history, _, _ in now.users.values() for i in history),
    )


def expected_samples(content: Content) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {}
    for reason, row in sorted(content.rejected):
        rows.setdefault(f"interactions: {reason}", []).append(row[:SAMPLE_CHARACTERS])
    return {reason: some[:SAMPLES] for reason, some in rows.items()}


def written_quality(folder: Path) -> dict[str, Any]:
    return dict(storage.read_json(f"{folder}/quality.json"))


BEFORE = random_content(1, users=60, items=50)
NOW = random_content(2, users=70, items=65, known=BEFORE)


def publish_before(spark: SparkSession, folder: Path, **form: int) -> Manifest:
    manifest = write_version(folder, BEFORE, **form)
    write_quality(spark, str(folder), manifest, None)
    write_manifest(str(folder), manifest)
    return manifest


def test_the_first_version_equals_a_count_of_its_rows(spark: SparkSession, tmp_path: Path) -> None:
    manifest = publish_before(spark, tmp_path)
    assert written_quality(tmp_path) == build_quality(manifest, expected_measures(BEFORE), expected_samples(BEFORE))
    page = (tmp_path / "quality.html").read_text()
    assert "The first version" in page and page.endswith("</html>\n")


def test_a_later_version_is_compared_with_the_one_before(spark: SparkSession, tmp_path: Path) -> None:
    before, now = tmp_path / "1", tmp_path / "2"
    earlier = publish_before(spark, before)
    manifest = write_version(now, NOW)
    write_quality(spark, f"file://{now}", manifest, f"file://{before}")
    expected = build_quality(manifest, expected_measures(NOW), expected_samples(NOW))
    turnover = expected_turnover(BEFORE, NOW)
    assert all(vars(turnover).values())  # every kind of change is there
    expected["drift"] = build_drift(written_quality(before), expected, turnover, earlier.content_hash())
    assert written_quality(now) == expected
    assert "gone users" in (now / "quality.html").read_text()


@pytest.mark.parametrize("shards", [1, 5])
def test_files_and_row_groups_are_no_content(spark: SparkSession, tmp_path: Path, shards: int) -> None:
    """Also where the number of shards differs from that of the version before."""
    publish_before(spark, tmp_path / "1")
    made = []
    for name, form in (("2", {}), ("3", {"shards": shards, "group": 100, "item_file": 33})):
        manifest = write_version(tmp_path / name, NOW, **form)
        write_quality(spark, str(tmp_path / name), manifest, str(tmp_path / "1"))
        made.append((tmp_path / name / "quality.json").read_bytes())
    assert made[0] == made[1]


@pytest.mark.parametrize("damage", ["absent", "of another form"])
def test_a_version_before_without_usable_quality_is_measured_again(
    spark: SparkSession, tmp_path: Path, damage: str
) -> None:
    before, now = tmp_path / "1", tmp_path / "2"
    publish_before(spark, before)
    manifest = write_version(now, NOW)
    write_quality(spark, str(now), manifest, str(before))
    whole = written_quality(now)
    if damage == "absent":
        (before / "quality.json").unlink()
    else:
        storage.write_json(f"{before}/quality.json", {"schema_version": 0})
    write_quality(spark, str(now), manifest, str(before))
    assert written_quality(now) == whole


def test_a_version_without_rejected_rows_has_none(spark: SparkSession, tmp_path: Path) -> None:
    manifest = write_version(tmp_path, BEFORE._replace(rejected=[]))
    storage.remove(f"{tmp_path}/rejected")
    write_quality(spark, str(tmp_path), manifest, None)
    assert written_quality(tmp_path)["rejected"] == {}
