"""A rerun that takes in the last 1 % of the events, against a full build of all of them, taking turns.

    python -m benchmarks.etl_rerun --dir DIR [--events 10000000] [--repeats 2]

Both begin from a copy of the version that holds the first 99 % and run as a process of their
own; "build" is the same run without the start of the process and of its Spark session. Inputs
and the first version stay in DIR. Exit status 1 when the contents differ.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.support.builds import checked, fresh_copy, run_build
from benchmarks.support.inputs import config_of, split_by_time, synthetic
from pad_dist.config import Config
from pad_dist.dataset import versions
from pad_dist.dataset.manifest import read_manifest


def main() -> None:
    """Print what is expected, one line per run and a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="for inputs and the first version, kept")
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--new", type=float, default=0.01, help="share of the events that are new, the last by time")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--driver-memory", default="5g", help="heap of the JVM")
    args = parser.parse_args()
    print("expected: the rerun costs at most 30 % of the full build at 10 M events; contents equal")
    inputs = split_by_time(synthetic(args.dir, args.events), args.new)
    work = args.dir / "work"
    shutil.rmtree(work, ignore_errors=True)

    def config(dataset: Path, files: str = "*", **data: Any) -> Config:
        where = (dataset, f"{inputs}/{files}/*.csv.gz", inputs / "items.csv.gz", args.shards, args.driver_memory)
        return config_of(*where, **data)

    first = config(inputs.with_name(f"{inputs.name}-dataset-{args.shards}"), "base")
    if versions.current(first.dataset) is None:
        print(f"the first version: {run_build(first, work / 'scratch').seconds:.0f} s", flush=True)
    runs = {"rerun": config(work / "rerun"), "full build": config(work / "full", incremental=False)}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    hashes = set()
    for repeat in range(args.repeats):
        for name in list(runs)[:: 1 if repeat % 2 else -1]:
            fresh_copy(first.dataset, Path(runs[name].dataset))
            took = run_build(runs[name], work / "scratch")
            seconds[name].append((took.seconds, took.build_seconds))
            hashes.add(checked(runs[name].dataset).content_hash())
            print(f"{repeat}: {name} {took.seconds:.1f} s, build {took.build_seconds:.1f} s", flush=True)
    scratch = config(work / "nothing")
    print(f"from nothing: {run_build(scratch, work / 'scratch').seconds:.1f} s", flush=True)
    same_rows = equal_by_key(runs["rerun"].dataset, scratch.dataset)
    shutil.rmtree(work)

    print("\n| | process, s | build, s |\n|---|---|---|")
    median = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in seconds.items()}
    for name, columns in median.items():
        print(f"| {name} | {columns[0]:.1f} | {columns[1]:.1f} |")
    ratios = [ours / full for ours, full in zip(median["rerun"], median["full build"], strict=True)]
    print(f"| rerun / full build | {ratios[0]:.1%} | {ratios[1]:.1%} |")
    print(f"\ncontent hashes equal: {len(hashes) == 1}; rows equal those of a build from nothing: {same_rows}")
    if len(hashes) > 1 or not same_rows:
        sys.exit("the contents differ")


def equal_by_key(one: str, other: str) -> bool:
    """Whether two datasets hold the same sequences and items, whatever numbers the items have."""
    (items, keys), (other_items, other_keys) = (items_of(url) for url in (one, other))
    shards, other_shards = (files_of(url, "sequences") for url in (one, other))
    return (
        items.equals(other_items)
        and len(shards) == len(other_shards)
        and all(with_keys(a, keys).equals(with_keys(b, other_keys)) for a, b in zip(shards, other_shards, strict=True))
    )


def items_of(dataset: str) -> tuple[pa.Table, pa.Array]:
    """Items by key, without their number; and the key of each number - 1."""
    table = pa.concat_tables([pq.read_table(file) for file in files_of(dataset, "items")])
    return table.drop_columns("item_index").sort_by("item_key"), table["item_key"].combine_chunks()


def files_of(dataset: str, group: str) -> list[str]:
    """Files of the current version."""
    url = versions.resolve(dataset)
    return [f"{url}/{entry.path}" for entry in read_manifest(url, "the benchmark").groups[group]]


def with_keys(file: str, keys: pa.Array) -> pa.Table:
    """Sequences with item keys in place of numbers."""
    table = pq.read_table(file).combine_chunks()
    lists = table["items"].combine_chunks()
    named = keys.take(pc.subtract(lists.flatten(), 1))
    offsets = np.append(0, np.cumsum(lists.value_lengths().to_numpy())).astype(np.int32)
    return table.set_column(1, "items", pa.ListArray.from_arrays(pa.array(offsets), named))


if __name__ == "__main__":
    main()
