import hashlib
import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pad_dist.dataset import versions
from pad_dist.dataset.manifest import read_manifest, write_manifest
from pad_dist.dataset.reader import Dataset, Histories
from pad_dist.errors import UserError
from pad_dist.storage import sha256
from tests.support.tiny_dataset import frequency_bins, random_sequences, time_splits, write_tiny_dataset

ITEMS, INACTIVE = 30, (4, 30)
SEQUENCES = random_sequences(50, ITEMS, inactive=INACTIVE)
SPLITS = time_splits(SEQUENCES)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return write(tmp_path / "dataset")


def write(directory: Path) -> str:
    return write_tiny_dataset(directory, SEQUENCES, ITEMS, shards=4, item_files=3, splits=SPLITS, inactive=INACTIVE)


def users_of(histories: Histories) -> list[tuple[list[int], tuple[int, int, int]]]:
    """Each user's items and (train, valid, test)."""
    assert {values.dtype for values in histories} == {np.dtype(np.int64)}
    items = [histories.items[a:b].tolist() for a, b in pairwise(histories.offsets)]
    splits = zip(histories.train.tolist(), histories.valid.tolist(), histories.test.tolist(), strict=True)
    return list(zip(items, splits, strict=True))


def test_open_reads_nothing_but_the_manifest(url: str) -> None:
    for file in Path(url).glob("*/*.parquet"):
        file.unlink()
    dataset = Dataset.open(url)
    assert (dataset.users, dataset.items) == (50, ITEMS)
    assert dataset.interactions == sum(map(len, SEQUENCES))
    assert dataset.shard_rows == (13, 13, 12, 12)
    assert dataset.content_hash == read_manifest(url, "").content_hash()


def test_shards_hold_the_histories_and_splits_in_row_order(url: str) -> None:
    dataset = Dataset.open(url)
    found = [user for shard in range(4) for user in users_of(dataset.sequences(shard))]
    assert found == list(zip(SEQUENCES, SPLITS, strict=True))


@pytest.mark.parametrize("rows", [[], [49], [3, 14, 15, 40], [40, 3, 3, 0, 49]])
def test_gather_takes_rows_across_shards_in_the_given_order(url: str, rows: list[int]) -> None:
    found = Dataset.open(url).gather(np.array(rows, np.int64))
    assert users_of(found) == [(SEQUENCES[r], SPLITS[r]) for r in rows]


@pytest.mark.parametrize(("start", "stop"), [(0, 31), (0, 1), (5, 5), (8, 12), (21, 31), (11, 21)])
def test_item_columns_of_any_range(url: str, start: int, stop: int) -> None:
    trained = [i for s, (train, _, _) in zip(SEQUENCES, SPLITS, strict=True) for i in s[:train]]
    counts = np.bincount(trained, minlength=ITEMS + 1)
    bins = np.concatenate([[0], frequency_bins(counts[1:])])
    bins[list(INACTIVE)] = 0
    frequency, found = Dataset.open(url).item_columns(start, stop)
    np.testing.assert_array_equal(frequency, counts[start:stop])
    np.testing.assert_array_equal(found, bins[start:stop])
    assert frequency.dtype == np.int32 and found.dtype == np.uint8


def test_item_columns_reads_only_overlapping_files(url: str) -> None:
    (Path(url) / "items/part-00002.parquet").unlink()
    dataset = Dataset.open(url)
    dataset.item_columns(0, 21)
    with pytest.raises(UserError, match=r"part-00002\.parquet is listed in the manifest but missing"):
        dataset.item_columns(20, 22)
    with pytest.raises(ValueError, match="outside"):
        dataset.item_columns(0, ITEMS + 2)


@pytest.mark.parametrize(("start", "stop"), [(0, 31), (0, 1), (5, 5), (8, 12), (21, 31), (11, 21)])
def test_item_ids_of_any_range_are_those_of_their_keys(url: str, start: int, stop: int) -> None:
    digests = [hashlib.blake2b(f"key-{i}".encode(), digest_size=8).digest() for i in range(1, ITEMS + 1)]
    ids = np.concatenate([[0], np.frombuffer(b"".join(digests), "<i8")])
    found = Dataset.open(url).item_ids(start, stop)
    np.testing.assert_array_equal(found, ids[start:stop])
    assert found.dtype == np.int64


def test_item_columns_of_a_rank_are_read_once(url: str) -> None:
    dataset = Dataset.open(url)
    frequency, bins = dataset.item_columns(0, 21)
    shutil.rmtree(Path(url) / "items")
    again = dataset.item_columns(0, 21)
    assert again[0] is frequency and again[1] is bins
    with pytest.raises(UserError, match="listed in the manifest but missing"):
        dataset.item_columns(0, 20)


def test_memory_holds_two_blocks_of_shards(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pad_dist.dataset.reader.BLOCK_ROWS", 13)
    dataset = Dataset.open(url)
    held = []
    for shard in (0, 1, 0, 2, 3):
        dataset.sequences(shard)
        held.append(set(dataset._cache))
    assert held == [{0}, {0, 1}, {0, 1}, {0, 2}, {2, 3}]  # 13 + 13 rows fit, least recently used out first


@pytest.mark.parametrize("group", ["items", "sequences"])
def test_a_changed_byte_is_refused(url: str, group: str) -> None:
    file = Path(url) / group / "part-00001.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    dataset = Dataset.open(url)
    read = {"items": lambda: dataset.item_columns(0, ITEMS + 1), "sequences": lambda: dataset.sequences(1)}
    with pytest.raises(UserError, match=rf"{group}/part-00001\.parquet differs from the manifest"):
        read[group]()


def test_a_file_is_checked_once_per_process(url: str) -> None:
    dataset = Dataset.open(url)
    dataset.sequences(0)
    dataset._cache.clear()
    file = Path(url) / "sequences/part-00000.parquet"
    pq.write_table(pq.read_table(file).set_column(0, "user_key", pa.array(["x"] * 13)), file)
    dataset.sequences(0)  # another checksum now: this process knows the file already
    with pytest.raises(UserError, match="differs from the manifest"):
        Dataset.open(url).sequences(0)


def rewrite(url: str, table: pa.Table, group: str = "sequences") -> None:
    """Replace shard 0 by a file that the manifest vouches for."""
    file = Path(url) / group / "part-00000.parquet"
    pq.write_table(table, file)
    manifest = read_manifest(url, "")
    entry = manifest.groups[group][0]
    manifest.groups[group][0] = entry.model_copy(update={"sha256": sha256(str(file))})
    write_manifest(url, manifest)


def table_of(items: pa.Array, split: tuple[int | None, int, int] = (1, 1, 2)) -> pa.Table:
    """Shard 0: the last user has the given split, the others a valid one."""
    splits = [(1, 1, 2)] * (len(items) - 1) + [split]
    return pa.table({"items": items} | dict(zip(("train", "valid", "test"), zip(*splits, strict=True), strict=True)))


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (pa.array([[1, 2, 3]] * 12), "has 12 rows, the manifest says 13"),
        (pa.array([[1, 2, 3]] * 12 + [[1, 2, 31]]), r"item outside 1\.\.30"),
        (pa.array([[1, 2, 3]] * 12 + [[1, 2, 0]]), r"item outside 1\.\.30"),
        (pa.array([[1, 2, 3]] * 12 + [[1, 2, None]]), "not list<int64> without nulls"),
        (pa.array([[1, 2, 3]] * 12 + [None]), "not list<int64> without nulls"),
        (pa.array([["a", "b", "c"]] * 13), "not list<int64> without nulls"),
        (pa.array([1] * 13), "is int64, not list<int64>"),
    ],
)
def test_impossible_sequences_are_refused_by_name(url: str, items: pa.Array, message: str) -> None:
    rewrite(url, table_of(items))
    with pytest.raises(UserError, match=rf"sequences/part-00000\.parquet.*{message}"):
        Dataset.open(url).sequences(0)


THREE = pa.array([[1, 2, 3]] * 13)


@pytest.mark.parametrize("split", [(0, -1, -1), (0, 1, 2), (1, 1, 1), (3, -1, -1), (1, 2, -1), (2, -1, 2)])
def test_any_split_in_which_training_sees_no_target_is_read(url: str, split: tuple[int, int, int]) -> None:
    rewrite(url, table_of(THREE, split))
    assert users_of(Dataset.open(url).sequences(0))[12] == ([1, 2, 3], split)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ((-1, 1, 2), r"train is not within 0 \.\. the history's length"),
        ((4, -1, -1), r"train is not within 0 \.\. the history's length"),
        ((None, 1, 2), "train is not integer without nulls"),
        ((0, 0, 2), "valid is neither -1 nor a place after the first item"),
        ((0, 1, 0), "test is neither -1 nor a place after the first item"),
        ((0, -2, 2), "valid is neither -1 nor a place after the first item"),
        ((0, 1, 3), "test is neither -1 nor a place after the first item"),
        ((2, 1, 2), "valid names an item of the train part"),
        ((2, -1, 1), "test names an item of the train part"),
    ],
)
def test_impossible_splits_are_refused_by_name(url: str, split: tuple[int, int, int], message: str) -> None:
    rewrite(url, table_of(THREE, split))
    with pytest.raises(UserError, match=rf"sequences/part-00000\.parquet: column {message}"):
        Dataset.open(url).sequences(0)


@pytest.mark.parametrize("column", ["items", "train", "valid", "test"])
def test_a_missing_column_is_named(url: str, column: str) -> None:
    rewrite(url, table_of(THREE).drop_columns([column]))
    with pytest.raises(UserError, match=rf"sequences/part-00000\.parquet has no column {column}"):
        Dataset.open(url).sequences(0)


def publish(root: Path, version: str) -> None:
    write(root / "versions" / version)
    versions.publish(str(root), version, versions.current(str(root)))


def test_a_reader_keeps_the_version_that_was_current_when_it_opened(tmp_path: Path) -> None:
    publish(tmp_path, "000001-aa")
    dataset = Dataset.open(str(tmp_path))
    publish(tmp_path, "000002-bb")
    assert (dataset.version, dataset.url) == ("000001-aa", f"{tmp_path}/versions/000001-aa")
    assert users_of(dataset.sequences(0)) == list(zip(SEQUENCES, SPLITS, strict=True))[:13]
    assert Dataset.open(str(tmp_path)).version == "000002-bb"
    assert Dataset.open(dataset.url).version == "000001-aa"
    assert dataset.item_map == [[ITEMS, f"tiny-{ITEMS}"]]


def test_a_directory_that_stands_alone_has_no_version(url: str) -> None:
    assert (Dataset.open(url).url, Dataset.open(url).version) == (url, None)


@pytest.mark.parametrize("known", [False, True])
def test_a_version_that_is_deleted_while_it_is_read_is_named(tmp_path: Path, known: bool) -> None:
    publish(tmp_path, "000001-aa")
    dataset = Dataset.open(str(tmp_path))
    if known:  # a file that was read before is not checked again
        dataset.sequences(2)
        dataset._cache.clear()
    publish(tmp_path, "000002-bb")
    versions.retire(str(tmp_path), ["000001-aa"])
    with pytest.raises(UserError, match=rf"^{tmp_path}: version 000001-aa was deleted while it was read: [^\n]*$"):
        dataset.sequences(2)


def test_a_lost_file_of_a_published_version_is_named(tmp_path: Path) -> None:
    publish(tmp_path, "000001-aa")
    (tmp_path / "versions/000001-aa/sequences/part-00002.parquet").unlink()
    with pytest.raises(UserError, match=r"part-00002\.parquet is listed in the manifest but missing"):
        Dataset.open(str(tmp_path)).sequences(2)


@pytest.mark.parametrize(("item_map", "last"), [([[9, "a"], [29, "b"]], 29), ([], 0), (None, 0)])
def test_an_item_map_at_odds_with_the_items_is_refused(url: str, item_map: list[list[object]], last: int) -> None:
    file = Path(url) / "manifest.json"
    values = json.loads(file.read_text())
    values["parameters"] = {"item_map": item_map} if item_map is not None else {}
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match=f"item_map ends at {last} items, there are 30"):
        Dataset.open(url)


def test_counts_at_odds_with_the_files_are_refused(url: str) -> None:
    file = Path(url) / "manifest.json"
    values = json.loads(file.read_text())
    values["counts"]["users"] = 49
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match="counts 49 users, its files hold 50"):
        Dataset.open(url)


def test_absent_and_empty_datasets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `pad-dist run"):
        Dataset.open(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="empty dataset"):
        Dataset.open(write_tiny_dataset(tmp_path / "empty", [], 5, shards=1))


def test_a_frequency_beyond_32_bits_is_the_most_that_they_hold(url: str) -> None:
    table = pq.read_table(Path(url) / "items/part-00000.parquet")
    column = table.column_names.index("train_frequency")
    counts = [2**31 - 2, 2**31 - 1, 2**31, 2**40, *range(len(table) - 4)]
    rewrite(url, table.set_column(column, "train_frequency", pa.array(counts, pa.int64())), "items")
    frequency, _ = Dataset.open(url).item_columns(1, len(table) + 1)
    assert frequency.tolist() == [2**31 - 2, 2**31 - 1, 2**31 - 1, 2**31 - 1, *counts[4:]]
