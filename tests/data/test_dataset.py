import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pad_dist.data.dataset import Dataset
from pad_dist.data.manifest import read_manifest, write_manifest
from pad_dist.errors import UserError
from pad_dist.storage import sha256
from tests.support.tiny_dataset import frequency_bins, random_sequences, write_tiny_dataset

ITEMS = 30
SEQUENCES = random_sequences(50, ITEMS)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return write_tiny_dataset(tmp_path / "dataset", SEQUENCES, ITEMS, shards=4, item_files=3)


def test_open_reads_nothing_but_the_manifest(url: str) -> None:
    for file in Path(url).glob("*/*.parquet"):
        file.unlink()
    dataset = Dataset.open(url)
    assert (dataset.users, dataset.items) == (50, ITEMS)
    assert dataset.interactions == sum(map(len, SEQUENCES))
    assert dataset.shard_rows == (13, 13, 12, 12)
    assert dataset.content_hash == read_manifest(url, "").content_hash()


def test_shards_hold_the_sequences_in_row_order(url: str) -> None:
    dataset = Dataset.open(url)
    found = []
    for shard in range(4):
        offsets, items = dataset.sequences(shard)
        assert offsets.dtype == items.dtype == np.int64
        found += [part.tolist() for part in np.split(items, offsets[1:-1])]
    assert found == SEQUENCES


@pytest.mark.parametrize("rows", [[], [49], [3, 14, 15, 40], [40, 3, 3, 0, 49]])
def test_gather_takes_rows_across_shards_in_the_given_order(url: str, rows: list[int]) -> None:
    offsets, items = Dataset.open(url).gather(np.array(rows, np.int64))
    assert [items[a:b].tolist() for a, b in pairwise(offsets)] == [SEQUENCES[r] for r in rows]


@pytest.mark.parametrize(("start", "stop"), [(0, 31), (0, 1), (5, 5), (8, 12), (21, 31), (11, 21)])
def test_item_columns_of_any_range(url: str, start: int, stop: int) -> None:
    counts = np.bincount([i for s in SEQUENCES for i in s[:-2]], minlength=ITEMS + 1)
    bins = np.concatenate([[0], frequency_bins(counts[1:])])
    frequency, found = Dataset.open(url).item_columns(start, stop)
    np.testing.assert_array_equal(frequency, counts[start:stop])
    np.testing.assert_array_equal(found, bins[start:stop])
    assert frequency.dtype == np.int64 and found.dtype == np.uint8


def test_item_columns_reads_only_overlapping_files(url: str) -> None:
    (Path(url) / "items/part-00002.parquet").unlink()
    dataset = Dataset.open(url)
    dataset.item_columns(0, 21)
    with pytest.raises(UserError, match=r"part-00002\.parquet is listed in the manifest but missing"):
        dataset.item_columns(20, 22)
    with pytest.raises(ValueError, match="outside"):
        dataset.item_columns(0, ITEMS + 2)


def test_memory_holds_two_blocks_of_shards(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pad_dist.data.dataset.BLOCK_ROWS", 13)
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


def rewrite(url: str, table: pa.Table) -> None:
    """Replace shard 0 by a file that the manifest vouches for."""
    file = Path(url) / "sequences/part-00000.parquet"
    pq.write_table(table, file)
    manifest = read_manifest(url, "")
    entry = manifest.groups["sequences"][0]
    manifest.groups["sequences"][0] = entry.model_copy(update={"sha256": sha256(str(file))})
    write_manifest(url, manifest)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (pa.array([[1, 2, 3]] * 12), "has 12 rows, the manifest says 13"),
        (pa.array([[1, 2, 3]] * 12 + [[1, 2]]), "fewer than 3 items"),
        (pa.array([[1, 2, 3]] * 12 + [[1, 2, 31]]), r"item outside 1\.\.30"),
        (pa.array([[1, 2, 3]] * 12 + [[1, 2, 0]]), r"item outside 1\.\.30"),
        (pa.array([[1, 2, 3]] * 12 + [[1, 2, None]]), "not list<int64> without nulls"),
        (pa.array([[1, 2, 3]] * 12 + [None]), "not list<int64> without nulls"),
        (pa.array([["a", "b", "c"]] * 13), "not list<int64> without nulls"),
        (pa.array([1] * 13), "is int64, not list<int64>"),
    ],
)
def test_impossible_sequences_are_refused_by_name(url: str, items: pa.Array, message: str) -> None:
    rewrite(url, pa.table({"items": items}))
    with pytest.raises(UserError, match=rf"sequences/part-00000\.parquet.*{message}"):
        Dataset.open(url).sequences(0)


def test_a_missing_column_is_named(url: str) -> None:
    rewrite(url, pa.table({"history": [[1, 2, 3]] * 13}))
    with pytest.raises(UserError, match=r"sequences/part-00000\.parquet has no column items"):
        Dataset.open(url).sequences(0)


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
