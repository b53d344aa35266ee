"""Random events as input files, and what the ETL must make of them, in plain Python."""

import html
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from pad_dist.config import Config
from pad_dist.config.load import parse_config
from pad_dist.dataset import versions
from pad_dist.dataset.manifest import read_manifest

SHARDS = 3


class Event(NamedTuple):
    user: str
    item: str
    time: int
    rating: int


def random_events(rng: random.Random) -> list[Event]:
    """Messy order, equal times, skewed items, users too short to stay."""
    users = [f"u{n}" for n in range(60)]
    return [
        Event(user, f"i{int(rng.paretovariate(0.7)) % 45:02}", rng.randrange(30), rng.randint(1, 5))
        for user in rng.sample(users, len(users))
        for _ in range(rng.randint(1, 18))
    ]


CATALOGUE: list[tuple[str, str | None]] = [
    *[(f"i{n:02}", f"Title &amp; more  {n}") for n in range(5, 50)],
    *[("i03", None), ("i04", "  "), ("i01", "&nbsp;"), ("i10", "A first"), ("i10", None), ("i11", "Zlast")],
]


def config_for(folder: Path, dataset: str = "dataset", **data: Any) -> Config:
    columns = {"user": "user", "item": "item", "time": "time", "rating": "rating"}
    inputs = {"interactions": f"{folder}/events.csv", "items": f"{folder}/items.csv"}
    values = {**inputs, "columns": columns, "shards": SHARDS, "min_interactions": 3, **data}
    return parse_config({"name": "t", "dataset": f"{folder}/{dataset}", "data": values}, "test")


def write_inputs(
    folder: Path, events: Sequence[Event], catalogue: Sequence[tuple[str, str | None]] = CATALOGUE
) -> None:
    lines = [",".join(map(str, event)) for event in events]
    (folder / "events.csv").write_text("\n".join(["user,item,time,rating", *lines]) + "\n")
    lines = [f"{key},{text or ''}" for key, text in catalogue]
    (folder / "items.csv").write_text("\n".join(["item,title", *lines]) + "\n")


def read_group(dataset: str, group: str) -> list[dict[str, list[Any]]]:
    """Columns of each file of a group, of the current version."""
    folder = versions.resolve(dataset)
    manifest = read_manifest(folder, "the test")
    return [pq.read_table(f"{folder}/{file.path}").to_pydict() for file in manifest.groups[group]]


def read_items(dataset: str) -> dict[str, list[Any]]:
    files = read_group(dataset, "items")
    return {name: [value for file in files for value in file[name]] for name in files[0]}


def read_sequences(dataset: str) -> list[list[tuple[str, list[int]]]]:
    """(user_key, items) of each shard."""
    return [list(zip(shard["user_key"], shard["items"], strict=True)) for shard in read_group(dataset, "sequences")]


def by_key(dataset: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The dataset without item numbers: sequence rows of all shards, and the other columns of each item by its key."""
    items = read_items(dataset)
    key = dict(zip(items["item_index"], items["item_key"], strict=True))
    rows = [
        dict(zip(shard, row, strict=True)) | {"items": [key[item] for item in row[1]]}
        for shard in read_group(dataset, "sequences")
        for row in zip(*shard.values(), strict=True)
    ]
    columns = zip(items["train_frequency"], items["bin"], items["text"], strict=True)
    return rows, dict(zip(items["item_key"], columns, strict=True))


def kept_events(events: Sequence[Event], data: Any) -> list[Event]:
    return [event for event in events if data.min_rating is None or event.rating >= data.min_rating]


def expected_sequences(events: Sequence[Event], data: Any) -> dict[str, list[str]]:
    histories: dict[str, set[tuple[int, str]]] = {}
    for event in kept_events(events, data):
        histories.setdefault(event.user, set()).add((event.time, event.item))
    kept = {}
    for user, history in sorted(histories.items()):
        if len(history) >= data.min_interactions:
            items = [item for _, item in sorted(history)]
            kept[user] = items[-data.keep_last :] if data.max_history and len(items) > data.max_history else items
    return kept


def expected_items(sequences: dict[str, list[str]], seen: set[str]) -> dict[str, list[Any]]:
    texts: dict[str, str] = {}
    for key, raw in sorted((key, raw) for key, raw in CATALOGUE if raw and raw.strip()):
        texts.setdefault(key, " ".join(html.unescape(raw).split()))
    keys = sorted({key for key, _ in CATALOGUE} | seen)
    frequency = Counter(item for items in sequences.values() for item in items[:-2])
    bins, current, mass = dict.fromkeys(keys, 10), 1, 0
    for key in sorted((k for k in keys if frequency[k]), key=lambda k: (-frequency[k], k)):
        bins[key] = current
        mass += frequency[key]
        if current < 10 and 10 * mass >= frequency.total():
            current, mass = current + 1, 0
    return {
        "item_key": keys,
        "item_index": list(range(1, len(keys) + 1)),
        "train_frequency": [frequency[key] for key in keys],
        "bin": [bins[key] for key in keys],
        "text": [texts.get(key) or key for key in keys],
    }
