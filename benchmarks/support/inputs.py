"""Inputs of the ETL benchmarks, generated once and kept."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from pad_dist.config import Config
from pad_dist.config.load import parse_config
from pad_dist.dataset.synthetic import write_synthetic

SEED = 7


def name_of(events: int) -> str:
    """10m, 200k, ..."""
    return f"{events // 1_000_000}m" if events % 1_000_000 == 0 else f"{events // 1000}k"


def synthetic(folder: Path, events: int) -> Path:
    """Directory of synthetic inputs: 20 events for each user, 100 for each item."""
    with _once(folder / name_of(events)) as new:
        if new:
            print(f"generating {events:,} events", flush=True)
            write_synthetic(str(new), events, users=events // 20, items=events // 100, seed=SEED)
    return folder / name_of(events)


def split_by_time(inputs: Path, share: float) -> Path:
    """Directory that holds base/*.csv.gz, the older events, and new/*.csv.gz, the last `share` of them by time."""
    place = inputs.with_name(f"{inputs.name}-split-{share:g}")
    with _once(place) as new:
        if new:
            print(f"splitting off the last {share:.0%} of the events", flush=True)
            files = sorted(inputs.glob("interactions-*.csv.gz"))
            times = np.concatenate([pa_csv.read_csv(file)["timestamp"].to_numpy() for file in files])
            bound = np.partition(times, -int(share * len(times)))[-int(share * len(times))]
            late = []
            for file in files:
                table = pa_csv.read_csv(file)
                is_late = table["timestamp"].to_numpy() >= bound
                _write(new / "base" / file.name, table.filter(pa.array(~is_late)))
                late.append(table.filter(pa.array(is_late)))
            _write(new / "new" / "interactions.csv.gz", pa.concat_tables(late))
            shutil.copy(inputs / "items.csv.gz", new)
    return place


def skewed(folder: Path, user_events: int, item_events: int, others: int) -> tuple[Path, pa.Table]:
    """Directory of events of which one user ("heavy") has `user_events` and one item ("hot") `item_events`; and they.

    The hot item's events are spread over users with 10 each; `others` more events are too.
    """
    rng = np.random.default_rng(SEED)
    spread = item_events + others
    users = np.char.add("u", rng.permutation(np.arange(spread) // 10).astype(str))
    items = np.where(np.arange(spread) < item_events, "hot", np.char.add("i", (np.arange(spread) % 9973).astype(str)))
    own = np.char.add("i", rng.integers(0, 9973, user_events).astype(str))
    times = rng.permutation(spread + user_events)
    table = pa.table(
        {
            "user": np.concatenate([users, np.full(user_events, "heavy")]),
            "item": np.concatenate([items, own]),
            "timestamp": times,
        }
    ).take(pa.array(rng.permutation(len(times))))
    place = folder / f"skewed-{user_events}-{item_events}-{others}"
    with _once(place) as new:
        if new:
            _write(new / "interactions-00000.csv.gz", table)
            _write(new / "items.csv.gz", pa.table({"item": ["hot"], "title": ["Everyone's"]}))
    return place, table


def config_of(dataset: str | Path, interactions: str, items: Path, shards: int, memory: str, **data: Any) -> Config:
    """A run config on local[2]; `data` adds to the section of that name."""
    values = {
        "interactions": interactions,
        "items": str(items),
        "columns": {"time": "timestamp"},
        "shards": shards,
        "spark_master": "local[2]",
        "spark_conf": {"spark.driver.memory": memory},
    }
    return parse_config({"name": "benchmark", "dataset": str(dataset), "data": values | data}, "the benchmark")


@contextmanager
def _once(place: Path) -> Iterator[Path | None]:
    """A directory to fill, which becomes `place` when whole; None if that is there already."""
    if place.is_dir():
        yield None
        return
    partial = place.with_name(f"{place.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    partial.rename(place)


def _write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.output_stream(str(path), compression="gzip") as file:
        pa_csv.write_csv(table, file)
