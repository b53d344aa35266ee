"""The table of text vectors that `spark_jobs.embed_items` made: any range of rows, no Spark."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pad_dist import storage
from pad_dist.config import TextConfig
from pad_dist.data.manifest import FileEntry, Manifest, read_manifest, verify_file
from pad_dist.errors import UserError

BUILD_COMMAND = "python -m spark_jobs.build_sequences --config CONFIG"
EMBED_COMMAND = "python -m spark_jobs.embed_items --config CONFIG"


def text_url(dataset_url: str) -> str:
    """Where a dataset keeps its text vectors."""
    return storage.join(dataset_url, "text")


def text_manifest(dataset_url: str) -> Manifest:
    """The manifest of a dataset's text vectors; counts `items` and `dim`, group "text".

    Raises:
        UserError: absent, or made for another state of the dataset.
    """
    dataset = read_manifest(dataset_url, BUILD_COMMAND)
    manifest = read_manifest(text_url(dataset_url), EMBED_COMMAND)
    if manifest.parameters["dataset"] != dataset.content_hash():
        raise UserError(f"{text_url(dataset_url)} was made for another dataset: run `{EMBED_COMMAND}` again")
    return manifest


def check_recipe(dataset_url: str, config: TextConfig) -> None:
    """Refuse text vectors that another model or pooling made than the config names.

    Raises:
        UserError: see `text_manifest`; or the first setting that differs.
    """
    made_with = text_manifest(dataset_url).parameters
    for name in ("model", "gguf_file", "pooling", "bidirectional", "max_tokens"):
        wanted = getattr(config, name)
        if made_with[name] != wanted:
            raise UserError(
                f"{text_url(dataset_url)} was made with text.{name}={made_with[name]}, the config says {wanted}: "
                f"run `{EMBED_COMMAND}` again or set text.{name}={made_with[name]}"
            )


def read_text_rows(dataset_url: str, start: int, stop: int) -> NDArray[np.float16]:
    """Unit vectors of item_index start..stop-1, [stop - start, dim] float16; row 0 (padding) is zeros.

    Only the files that overlap the range are read, each checked against the manifest.

    Raises:
        ValueError: the range is not within 0..items + 1.
        UserError: see `text_manifest`; or a file differs from the manifest.
    """
    manifest = text_manifest(dataset_url)
    if not 0 <= start <= stop <= manifest.counts["items"] + 1:
        raise ValueError(f"rows {start}..{stop} are not within 0..{manifest.counts['items'] + 1}")
    rows = np.zeros((stop - start, manifest.counts["dim"]), np.float16)
    for entry in manifest.groups["text"]:
        first = entry.first_index or 0
        low, high = max(start, first), min(stop, first + entry.rows)
        if low < high:
            rows[low - start : high - start] = _read(text_url(dataset_url), entry)[low - first : high - first]
    return rows


def _read(url: str, entry: FileEntry) -> NDArray[np.float16]:
    verify_file(url, entry)
    fs, path = storage.filesystem(storage.join(url, entry.path))
    with fs.open(path, "rb") as file:
        table = pq.read_table(file, columns=["item_index", "embedding"])
    first = entry.first_index or 0
    if not np.array_equal(table["item_index"].to_numpy(), np.arange(first, first + entry.rows)):
        raise UserError(
            f"{storage.join(url, entry.path)} does not hold items {first}..{first + entry.rows - 1} in order: "
            f"run `{EMBED_COMMAND}` again"
        )
    return vectors(table["embedding"])


def vectors(column: pa.ChunkedArray) -> NDArray[np.float16]:
    """A fixed-size-list column as [rows, dim] float16."""
    flat: NDArray[np.float16] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), column.type.list_size)
