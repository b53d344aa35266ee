"""A dataset of any number of items and few users, written without Spark, a file of items at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pad_dist import storage
from pad_dist.dataset.manifest import FileEntry, Manifest, write_manifest

LENGTH = 22
"""Items of each history, drawn uniformly: 21 for training, one to validate."""
_FILE_ROWS = 1 << 18
"""As the ETL cuts items."""


def write_many_items(folder: Path, items: int, users: int, validated: int) -> str:
    """Write `users` histories over items 1..`items`; the first `validated` users have a target. Returns the URL."""
    histories = np.random.default_rng(7).integers(1, items + 1, (users, LENGTH))
    used, counts = np.unique(histories[:, :-1], return_counts=True)
    groups: dict[str, list[FileEntry]] = {"items": [], "sequences": []}
    for number, first in enumerate(range(1, items + 1, _FILE_ROWS)):
        index = np.arange(first, min(first + _FILE_ROWS, items + 1))
        frequency = np.zeros(len(index), np.int64)
        here = slice(*np.searchsorted(used, [first, first + len(index)]))
        frequency[used[here] - first] = counts[here]
        columns = {
            "item_key": pc.cast(pa.array(index), pa.string()),
            "item_index": index,
            "train_frequency": frequency,
            "bin": pa.array(1 + index % 10, pa.int32()),
            "text": pa.repeat("", len(index)),
        }
        groups["items"].append(_write(folder, f"items/part-{number:05d}.parquet", pa.table(columns), first))
    place = np.where(np.arange(users) < validated, LENGTH - 1, -1)
    splits = {"train": np.full(users, LENGTH - 1), "valid": place, "test": np.full(users, -1)}
    columns = {"user_key": pc.cast(pa.array(np.arange(users)), pa.string()), "items": pa.array(list(histories))}
    columns |= {name: pa.array(values, pa.int32()) for name, values in splits.items()}
    groups["sequences"].append(_write(folder, "sequences/part-00000.parquet", pa.table(columns)))
    totals = {"users": users, "items": items, "interactions": histories.size}
    parameters = {"item_map": [[items, f"many-{items}"]]}
    write_manifest(str(folder), Manifest(counts=totals, parameters=parameters, groups=groups))
    return str(folder)


def _write(folder: Path, path: str, table: pa.Table, first_index: int | None = None) -> FileEntry:
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)
    size, digest = file.stat().st_size, storage.sha256(str(file))
    return FileEntry(path=path, rows=table.num_rows, bytes=size, sha256=digest, first_index=first_index)
