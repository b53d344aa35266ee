"""Write a random text table in the on-disk contract, without a language model."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pad_dist.config import TextConfig
from pad_dist.data.manifest import FileEntry, Manifest, read_manifest, write_manifest


def write_tiny_text(dataset: str, dim: int, seed: int = 0) -> None:
    """Random float16 [items, dim] rows beside a dataset that `write_tiny_dataset` wrote."""
    manifest = read_manifest(dataset, "the test")
    items = manifest.counts["items"]
    values = np.random.default_rng(seed).standard_normal((items, dim)).astype(np.float16)
    table = pa.table(
        {
            "item_index": pa.array(np.arange(1, items + 1), pa.int64()),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), pa.float16()), dim),
            "content_hash": [f"hash-{index}" for index in range(items)],
        }
    )
    file = Path(dataset) / "text" / "part-00000.parquet"
    file.parent.mkdir(exist_ok=True)
    pq.write_table(table, file)
    content = file.read_bytes()
    entry = FileEntry(
        path="part-00000.parquet",
        rows=items,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        first_index=1,
    )
    recipe = TextConfig().model_dump(include={"model", "gguf_file", "pooling", "bidirectional", "max_tokens"})
    parameters = {**recipe, "dataset": manifest.content_hash()}
    write_manifest(
        str(file.parent), Manifest(counts={"items": items, "dim": dim}, parameters=parameters, groups={"text": [entry]})
    )
