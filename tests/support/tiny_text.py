"""Write a random text table in the on-disk contract, without a language model."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pad_dist import storage
from pad_dist.config import TextConfig
from pad_dist.dataset import versions
from pad_dist.dataset.manifest import FileEntry, Manifest, read_manifest
from pad_dist.dataset.text_table import encode, manifest_url, recipe_name


def write_tiny_text(
    dataset: str,
    dim: int,
    seed: int = 0,
    *,
    text: TextConfig = TextConfig(),  # noqa: B008 (immutable)
    rows_per_file: int | None = None,
    erased: tuple[int, ...] = (),
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """Random or the given rows for the items of a dataset (a root's current version, or a plain directory).

    `erased` items have rows of zeros. Returns what was encoded: [items + 1, dim] float16, row 0 zeros.
    """
    version = versions.resolve(dataset)
    root = versions.root_of(version)
    manifest = read_manifest(version, "the test")
    items = manifest.counts["items"]
    if rows is None:
        rows = np.zeros((items + 1, dim), np.float16)
        rows[1:] = np.random.default_rng(seed).standard_normal((items, dim))
    rows[list(erased)] = 0
    size = rows_per_file or items
    entries = [
        _write(root, recipe_name(text), first, rows[first : first + size], text.dtype)
        for first in range(1, items + 1, size)
    ]
    parameters = {**text.model_dump(mode="json"), "revision": "tiny", "dataset": manifest.content_hash()}
    written = Manifest(counts={"items": items, "dim": dim}, parameters=parameters, groups={"text": entries})
    storage.write_json(manifest_url(version, text), written.model_dump())
    return rows


def _write(root: str, recipe: str, first: int, rows: np.ndarray, dtype: str) -> FileEntry:
    index = np.arange(first, first + len(rows))
    table = pa.table(
        {"item_index": index, **encode(rows, dtype), "content_hash": [f"{recipe}-{number}" for number in index]}
    )
    name = (
        f"text/part-{first:09d}-{index[-1]:09d}-{recipe[-8:]}-{hashlib.sha256(rows.tobytes()).hexdigest()[:16]}.parquet"
    )
    file = Path(root, name)
    file.parent.mkdir(exist_ok=True)
    pq.write_table(table, file)
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return FileEntry(path=name, rows=len(rows), bytes=len(content), sha256=digest, first_index=first)
