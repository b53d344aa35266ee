"""The real sets build to the counts of their SOURCE.md and to what plain Python reads in the raw files."""

import csv
import gzip
from collections import Counter, defaultdict
from itertools import pairwise
from math import inf
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import pytest
from pyspark.sql import SparkSession

from pad_dist.config import Config, SplitConfig
from pad_dist.config.load import load_config
from pad_dist.dataset.manifest import Manifest
from spark_jobs.build_sequences import build_sequences
from tests.support.events import by_key

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[2] / "configs"

Histories = dict[str, list[tuple[int, str]]]
Rows = list[dict[str, Any]]


class Counts(NamedTuple):
    """What a SOURCE.md tells; the lengths are of histories, `untitled` of items."""

    users: int
    items: int
    interactions: int
    mean: float
    median: float
    shortest: int
    longest: int
    untitled: int


PUBLISHED = {
    "prime_pantry": Counts(12871, 8347, 115004, 8.94, 7, 5, 23, 0),
    "beauty": Counts(22363, 12101, 198502, 8.88, 6, 5, 204, 7),
    "sports": Counts(35598, 18357, 296337, 8.32, 6, 5, 296, 0),
    "beauty_events": Counts(22332, 12086, 198215, 8.88, 6, 5, 204, 0),
}


def config_of(name: str, shared_data: Path, dataset: Path, **inputs: str) -> Config:
    """The config as a user gives it, on the files of that set."""
    folder = shared_data / name.replace("_", "-")
    inputs = {kind: f"{folder}/{kind}.csv.gz" for kind in ("interactions", "items")} | inputs
    return load_config(
        str(CONFIGS / f"{name}.yaml"), [f"dataset={dataset}", *(f"data.{kind}={url}" for kind, url in inputs.items())]
    )


def read_csv(path: str) -> list[dict[str, str]]:
    with gzip.open(path, "rt", newline="") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def raw_histories(config: Config) -> Histories:
    """(time, item) of each user, in order."""
    found: Histories = defaultdict(list)
    for row in read_csv(config.data.interactions):
        found[row["user"]].append((int(row[config.data.columns.time]), row["item"]))
    return {user: sorted(history) for user, history in found.items()}


def check_published(name: str, manifest: Manifest, sequences: Rows, raw: Histories) -> None:
    """The counts of the set, and every history as the raw file has it."""
    lengths = [len(row["items"]) for row in sequences]
    assert PUBLISHED[name] == (
        *(manifest.counts[kind] for kind in ("users", "items", "interactions")),
        pytest.approx(mean(lengths), abs=0.006),
        *(median(lengths), min(lengths), max(lengths)),
        manifest.counts["items_without_text"],
    )
    assert manifest.rejected == {} and manifest.counts["duplicate_item_rows"] == 0
    histories = {user: [item for _, item in history] for user, history in raw.items()}
    assert {row["user_key"]: row["items"] for row in sequences} == histories


@pytest.mark.parametrize("name", ["prime_pantry", "beauty", "sports"])
def test_a_real_set_has_its_published_counts(spark: SparkSession, tmp_path: Path, shared_data: Path, name: str) -> None:
    config = config_of(name, shared_data, tmp_path)
    manifest = build_sequences(config, spark)
    sequences, _ = by_key(config.dataset)
    check_published(name, manifest, sequences, raw_histories(config))
    places = [(row["train"], row["valid"], row["test"]) for row in sequences]
    assert places == [(n - 2, n - 2, n - 1) for n in (len(row["items"]) for row in sequences)]
    if name == "prime_pantry":  # the ends of the bins, docs/method.md, "Data and split"
        assert manifest.parameters["bin_cuts"] == [0, 35, 100, 205, 361, 585, 898, 1357, 2074, 3348, 8347]


def test_beauty_split_by_time_day_after_day(
    spark: SparkSession, tmp_path: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of("beauty_events", shared_data, tmp_path / "whole")
    whole = build_sequences(config, spark)
    sequences, items = by_key(config.dataset)
    raw = raw_histories(config)
    check_published("beauty_events", whole, sequences, raw)
    check_split(config.data.split, whole, sequences, {key: item[0] for key, item in items.items()}, raw)

    arriving = config_of(
        "beauty_events",
        shared_data,
        tmp_path / "grown",
        interactions=f"{tmp_path}/day-*.csv",
        items=f"{tmp_path}/items.csv",
    )
    grown = arrive(arriving, config, tmp_path, spark)
    told = [line.partition(" version")[0] for line in capsys.readouterr().out.splitlines() if "event files" in line]
    assert told == ["grows from"] * 2
    assert by_key(arriving.dataset) == (sequences, items)
    assert grown.counts == whole.counts


def check_split(
    split: SplitConfig, manifest: Manifest, sequences: Rows, frequency: dict[str, int], raw: Histories
) -> None:
    """Targets and train parts by date, from the raw times."""
    valid_from, test_from = split.valid_from or inf, split.test_from or inf
    trained: Counter[str] = Counter()
    for row in sequences:
        history = raw[row["user_key"]]
        days = [0 if time < valid_from else 1 if time < test_from else 2 for time, _ in history]
        last = [
            max((place for place, day in enumerate(days) if day == target and place), default=-1) for target in (1, 2)
        ]
        assert (row["train"], row["valid"], row["test"]) == (days.count(0), *last), row
        assert all(time < valid_from for time, _ in history[: row["train"]])
        trained.update(row["items"][: row["train"]])
    assert {key: count for key, count in frequency.items() if count} == trained
    assert {kind: manifest.counts[f"{kind}_users"] for kind in ("train", "valid", "test")} == {
        "train": 20044,
        "valid": 6373,
        "test": 6925,
    }
    tested = sum(time >= test_from for history in raw.values() for time, _ in history)
    assert tested / manifest.counts["interactions"] == pytest.approx(0.12, abs=0.005)


def arrive(arriving: Config, config: Config, folder: Path, spark: SparkSession) -> Manifest:
    """Builds after each third of the events; only the last one can be split by time, as nobody had a target before."""
    events, catalogue = read_csv(config.data.interactions), read_csv(config.data.items)
    split = config.data.split
    seen: set[str] = set()
    first = arriving.model_copy(update={"data": arriving.data.model_copy(update={"split": SplitConfig()})})
    for start, stop in pairwise([0, split.valid_from or inf, split.test_from or inf, inf]):
        day = [row for row in events if start <= int(row["timestamp"]) < stop]
        write_csv(folder / f"day-{start:.0f}.csv", day)
        seen |= {row["item"] for row in day}
        write_csv(folder / "items.csv", [row for row in catalogue if row["item"] in seen])
        manifest = build_sequences(arriving if stop == inf else first, spark)
    return manifest
