"""Write a small dataset in the on-disk contract, without Spark."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pad_dist.dataset.manifest import FileEntry, Manifest, write_manifest

Sequences = list[list[int]]
Splits = list[tuple[int, int, int]]
"""Of each user: length of the train part, place of the validation and of the test target (-1: none)."""


def random_sequences(
    users: int, items: int, seed: int = 0, shortest: int = 3, longest: int = 12, inactive: Collection[int] = ()
) -> Sequences:
    """Histories with popularity skew, repeats and lengths from `shortest` to `longest`."""
    rng = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, items + 1)
    weights[[i - 1 for i in inactive]] = 0
    lengths = rng.integers(shortest, longest + 1, users)
    return [(rng.choice(items, n, p=weights / weights.sum()) + 1).tolist() for n in lengths]


def leave_one_out(sequences: Sequences) -> Splits:
    """The last item is the test target, the one before it the validation target."""
    return [(len(s) - 2, len(s) - 2, len(s) - 1) for s in sequences]


def time_splits(sequences: Sequences, seed: int = 0) -> Splits:
    """Each history cut at two random places, so that any of its three parts may be empty."""
    rng = np.random.default_rng(seed)
    cuts = [np.sort(rng.integers(0, len(s) + 1, 2)).tolist() for s in sequences]
    return [
        (a, b - 1 if b > max(a, 1) else -1, len(s) - 1 if len(s) > max(b, 1) else -1)
        for s, (a, b) in zip(sequences, cuts, strict=True)
    ]


def write_tiny_dataset(
    directory: Path,
    sequences: Sequences,
    items: int,
    shards: int = 3,
    item_files: int = 2,
    splits: Splits | None = None,
    inactive: Collection[int] = (),
) -> str:
    """Write `sequences` (row order is list order) and items 1..`items`; returns the URL.

    `splits` is leave-one-out where it is not given; `inactive` items, which no history may hold, get bin 0.
    """
    assert not set(inactive) & {i for s in sequences for i in s}
    directory.mkdir(parents=True, exist_ok=True)
    splits = leave_one_out(sequences) if splits is None else splits
    trained = [i for s, (train, _, _) in zip(sequences, splits, strict=True) for i in s[:train]]
    frequency = np.bincount(trained, minlength=items + 1)[1:]
    bins = frequency_bins(frequency)
    bins[[i - 1 for i in inactive]] = 0
    index = np.arange(1, items + 1)
    groups: dict[str, list[FileEntry]] = {"items": [], "sequences": []}
    for number, part in enumerate(np.array_split(index, item_files)):
        table = pa.table(
            {
                "item_key": [f"key-{i}" for i in part],
                "item_index": pa.array(part, pa.int64()),
                "train_frequency": pa.array(frequency[part - 1], pa.int64()),
                "bin": pa.array(bins[part - 1], pa.int32()),
                "text": [f"title of item {i}" for i in part],
            }
        )
        groups["items"].append(_write(directory, f"items/part-{number:05d}.parquet", table, int(part[0])))
    for number, rows in enumerate(np.array_split(np.arange(len(sequences)), shards)):
        table = pa.table(
            {
                "user_key": [f"user-{row}" for row in rows],
                "items": pa.array([sequences[row] for row in rows], pa.list_(pa.int64())),
                **{
                    name: pa.array([splits[row][column] for row in rows], pa.int32())
                    for column, name in enumerate(("train", "valid", "test"))
                },
            }
        )
        groups["sequences"].append(_write(directory, f"sequences/part-{number:05d}.parquet", table))
    counts = {"users": len(sequences), "items": items, "interactions": sum(map(len, sequences))}
    parameters = {"item_map": [[items, f"tiny-{items}"]]}
    write_manifest(str(directory), Manifest(counts=counts, parameters=parameters, groups=groups))
    return str(directory)


def frequency_bins(frequency: np.ndarray) -> np.ndarray:
    """Ten bins of equal interaction mass, most frequent items first (docs/method.md, "Data and split")."""
    order = np.argsort(-frequency, kind="stable")
    before = np.cumsum(frequency[order]) - frequency[order]
    bins = np.empty(len(frequency), np.int32)
    bins[order] = np.minimum(10, 1 + 10 * before // max(1, frequency.sum()))
    return bins


def _write(directory: Path, path: str, table: pa.Table, first_index: int | None = None) -> FileEntry:
    file = directory / path
    file.parent.mkdir(exist_ok=True)
    pq.write_table(table, file)
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return FileEntry(path=path, rows=table.num_rows, bytes=len(content), sha256=digest, first_index=first_index)
