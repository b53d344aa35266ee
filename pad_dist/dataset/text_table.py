"""Tables of text vectors that `spark_jobs.embed_items` made: any range of rows, no Spark.

    <root>/text/part-*.parquet                 vectors of a range of items, shared by versions, never changed
    <version>/text/<recipe name>.json          manifest: the files of one version under one recipe

Paths in the manifest are relative to the root. A version can have several recipes
(models, reductions, types); a config names one of them.
"""

from __future__ import annotations

import hashlib
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from pad_dist import storage
from pad_dist.config import TextConfig
from pad_dist.dataset import versions
from pad_dist.dataset.manifest import SCHEMA_VERSION, FileEntry, Manifest, read_manifest, verify_file
from pad_dist.errors import UserError

BUILD_COMMAND = "python -m spark_jobs.build_sequences --config CONFIG"
EMBED_COMMAND = "python -m spark_jobs.embed_items --config CONFIG"
TEXT = "text"
"""Folder of vectors in a root, of manifests in a version; the manifest's group of files."""

_NOT_RECIPE = {"batch_size", "rows_per_shard", "transform", "whitening"}
_INT8_MAX = 127


def recipe_name(text: TextConfig) -> str:
    """Name of the table that a config asks for: the model's name and a digest of what shapes the vectors.

    >>> recipe_name(TextConfig()) == recipe_name(TextConfig(batch_size=8, whitening=0.5))
    True
    """
    slug = re.sub(r"[^a-z0-9]+", "-", text.model.rstrip("/").rsplit("/", 1)[-1].lower()).strip("-")
    shape = json.dumps(text.model_dump(mode="json", exclude=_NOT_RECIPE), sort_keys=True)
    return f"{slug}-{hashlib.sha256(shape.encode()).hexdigest()[:8]}"


def manifest_url(version_url: str, text: TextConfig) -> str:
    """Where a version keeps the manifest of its vectors under a recipe."""
    return storage.join(version_url, TEXT, f"{recipe_name(text)}.json")


def read_text_manifest(url: str) -> Manifest:
    """Parse a text manifest.

    Raises:
        UserError: missing, no manifest or of another schema version.
    """
    try:
        manifest = Manifest.model_validate(storage.read_json(url))
    except ValidationError:
        raise UserError(f"{url} is not a manifest: run `{EMBED_COMMAND}` again") from None
    if manifest.schema_version != SCHEMA_VERSION:
        raise UserError(
            f"{url} has schema version {manifest.schema_version}, this library reads {SCHEMA_VERSION}: "
            f"run `{EMBED_COMMAND}` again"
        )
    return manifest


def has_text(dataset_url: str, text: TextConfig) -> bool:
    """Whether the current state of the dataset has vectors made as `text` says.

    Raises:
        UserError: the dataset does not exist.
    """
    version = versions.resolve(dataset_url)
    url = manifest_url(version, text)
    dataset = read_manifest(version, BUILD_COMMAND)
    return storage.exists(url) and read_text_manifest(url).parameters.get("dataset") == dataset.content_hash()


def text_manifest(dataset_url: str, text: TextConfig) -> Manifest:
    """The manifest of a dataset's vectors made as `text` says; counts `items` and `dim`, group "text".

    Args:
        dataset_url: a dataset's root (its current version is read) or one version's directory.

    Raises:
        UserError: no such vectors, or made for another state of the dataset.
    """
    version = versions.resolve(dataset_url)
    dataset = read_manifest(version, BUILD_COMMAND)
    url = manifest_url(version, text)
    if not storage.exists(url):
        recipes = ", ".join(_recipes(version)) or "none"
        raise UserError(f"{url} does not exist (text tables there: {recipes}): run `{EMBED_COMMAND}` first")
    manifest = read_text_manifest(url)
    if manifest.parameters.get("dataset") != dataset.content_hash():
        raise UserError(f"{url} was made for another state of the dataset: run `{EMBED_COMMAND}` again")
    return manifest


def _recipes(version_url: str) -> list[str]:
    fs, path = storage.filesystem(storage.join(version_url, TEXT))
    files = fs.ls(path, detail=False) if fs.isdir(path) else []
    names = [str(file).rsplit("/", 1)[-1] for file in files]
    return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))


def read_text_rows(dataset_url: str, text: TextConfig, start: int, stop: int) -> NDArray[np.float16]:
    """Vectors of item_index start..stop-1, [stop - start, dim] float16; row 0 (padding) and erased items are zeros.

    They are unit vectors; reduced ones have mean 0 and mean squared length 1. Only the
    files that overlap the range are read, each checked against the manifest.

    Raises:
        ValueError: the range is not within 0..items + 1.
        UserError: see `text_manifest`; or a file differs from the manifest.
    """
    manifest = text_manifest(dataset_url, text)
    if not 0 <= start <= stop <= manifest.counts["items"] + 1:
        raise ValueError(f"rows {start}..{stop} are not within 0..{manifest.counts['items'] + 1}")
    root = versions.root_of(versions.resolve(dataset_url))
    rows = np.zeros((stop - start, manifest.counts["dim"]), np.float16)
    for entry in manifest.groups[TEXT]:
        first = entry.first_index or 0
        low, high = max(start, first), min(stop, first + entry.rows)
        if low < high:
            rows[low - start : high - start] = _read(root, entry)[low - first : high - first]
    return rows


def _read(root: str, entry: FileEntry) -> NDArray[np.float16]:
    verify_file(root, entry)
    path = storage.join(root, entry.path)
    fs, plain = storage.filesystem(path)
    with fs.open(plain, "rb") as file:
        table = pq.read_table(file)
    first = entry.first_index or 0
    if not np.array_equal(table["item_index"].to_numpy(), np.arange(first, first + entry.rows)):
        raise UserError(
            f"{path} does not hold items {first}..{first + entry.rows - 1} in order: run `{EMBED_COMMAND}` again"
        )
    return decode(table)


def encode(rows: NDArray[np.floating], dtype: str) -> dict[str, pa.Array]:
    """Columns that hold `rows` [n, dim] as float16, or as int8 with one float32 `scale` per row.

    A component of an int8 row is off by at most half its row's scale, max |x| / 127.
    """
    if dtype == "float16":
        return {"embedding": _lists(rows.astype(np.float16))}
    scale = (np.abs(rows).max(axis=1, initial=0) / _INT8_MAX).astype(np.float32)
    steps = rows / np.where(scale > 0, scale, 1)[:, None]
    return {"embedding": _lists(np.rint(steps).clip(-_INT8_MAX, _INT8_MAX).astype(np.int8)), "scale": pa.array(scale)}


def decode(table: pa.Table) -> NDArray[np.float16]:
    """Rows [n, dim] of a table whose columns `encode` made."""
    column = table["embedding"]
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    rows: NDArray[np.float16] = flat.reshape(len(column), column.type.list_size)
    if "scale" in table.column_names:
        rows = (rows * table["scale"].to_numpy()[:, None]).astype(np.float16)
    return rows


def _lists(rows: NDArray[np.generic]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
