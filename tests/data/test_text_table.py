"""Reading the text table by item range."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pad_dist import storage
from pad_dist.data.manifest import FileEntry, Manifest, write_manifest
from pad_dist.data.text_table import read_text_rows, text_manifest
from pad_dist.errors import UserError

DIM, ROWS, ITEMS = 3, 4, 10


def write_table(url: Path, dataset_hash: str) -> np.ndarray:
    """Ten rows in files of four; returns [11, 3] with the padding row."""
    table = np.zeros((ITEMS + 1, DIM), np.float16)
    table[1:] = np.random.default_rng(0).normal(size=(ITEMS, DIM))
    entries = []
    for part, first in enumerate(range(1, ITEMS + 1, ROWS)):
        rows = table[first : first + ROWS]
        name = f"part-{part:05d}.parquet"
        (url / "text").mkdir(parents=True, exist_ok=True)
        columns = {
            "item_index": np.arange(first, first + len(rows)),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), DIM),
        }
        pq.write_table(pa.table(columns), url / "text" / name)
        path = url / "text" / name
        size, digest = path.stat().st_size, storage.sha256(str(path))
        entries.append(FileEntry(path=name, rows=len(rows), bytes=size, sha256=digest, first_index=first))
    counts, parameters = {"items": ITEMS, "dim": DIM}, {"dataset": dataset_hash}
    write_manifest(str(url / "text"), Manifest(counts=counts, parameters=parameters, groups={"text": entries}))
    return table


@pytest.fixture
def dataset(tmp_path: Path) -> tuple[Path, np.ndarray]:
    manifest = Manifest(counts={"items": ITEMS}, parameters={}, groups={})
    write_manifest(str(tmp_path), manifest)
    return tmp_path, write_table(tmp_path, manifest.content_hash())


@pytest.mark.parametrize(("start", "stop"), [(0, 11), (0, 1), (1, 5), (3, 7), (4, 11), (10, 11), (6, 6)])
def test_any_range_equals_the_slice_of_the_whole(dataset: tuple[Path, np.ndarray], start: int, stop: int) -> None:
    url, table = dataset
    rows = read_text_rows(str(url), start, stop)
    assert rows.dtype == np.float16
    np.testing.assert_array_equal(rows, table[start:stop])


def test_only_overlapping_files_are_read(dataset: tuple[Path, np.ndarray]) -> None:
    url, table = dataset
    (url / "text" / "part-00002.parquet").unlink()
    np.testing.assert_array_equal(read_text_rows(str(url), 0, 9), table[:9])
    with pytest.raises(UserError, match=r"part-00002\.parquet is listed in the manifest but missing"):
        read_text_rows(str(url), 0, 10)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (0, 12), (5, 4)])
def test_a_range_outside_the_table_is_refused(dataset: tuple[Path, np.ndarray], start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="not within"):
        read_text_rows(str(dataset[0]), start, stop)


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def swap(path: Path) -> None:
    path.write_bytes(path.with_name("part-00001.parquet").read_bytes())


@pytest.mark.parametrize("change", [damage, swap])
def test_a_changed_file_is_noticed(dataset: tuple[Path, np.ndarray], change: Callable[[Path], None]) -> None:
    change(dataset[0] / "text" / "part-00000.parquet")
    with pytest.raises(UserError, match=r"part-00000\.parquet differs from the manifest"):
        read_text_rows(str(dataset[0]), 0, 2)


def test_rows_of_other_items_are_noticed(dataset: tuple[Path, np.ndarray]) -> None:
    url, _ = dataset
    manifest = text_manifest(str(url))
    first, second, third = manifest.groups["text"]
    shifted = [first.model_copy(update={"first_index": 5}), second.model_copy(update={"first_index": 1}), third]
    write_manifest(str(url / "text"), manifest.model_copy(update={"groups": {"text": shifted}}))
    with pytest.raises(UserError, match=r"does not hold items 5\.\.8"):
        read_text_rows(str(url), 5, 6)


def test_an_absent_table_names_the_command(tmp_path: Path) -> None:
    write_manifest(str(tmp_path), Manifest(counts={"items": 1}, parameters={}, groups={}))
    with pytest.raises(UserError, match=r"python -m spark_jobs\.embed_items"):
        text_manifest(str(tmp_path))


def test_a_table_of_another_dataset_is_refused(dataset: tuple[Path, np.ndarray]) -> None:
    url, _ = dataset
    write_manifest(str(url), Manifest(counts={"items": ITEMS}, parameters={"min_interactions": 9}, groups={}))
    with pytest.raises(UserError, match="made for another dataset"):
        read_text_rows(str(url), 0, 1)
