"""Quality of a dataset version as plain values: its content, and its drift since the previous version.

`spark_jobs.quality` measures exact histograms, which are small however large the
dataset is. Everything here is arithmetic on them, so equal content gives equal values.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pad_dist.dataset.manifest import Manifest

QUALITY_SCHEMA = 1
NOTEWORTHY = 0.1
"""A share, relative change or distance above this is reported in words."""

Histogram = Mapping[int, int]
"""Value -> number of users or items that have it."""

_EDGES = (10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100)
_QUANTILES = {"p1": 1, "p10": 10, "p50": 50, "p90": 90, "p99": 99}
_COUNTED = ("users", "interactions", "items", "active_items", "unseen_items", "items_without_text", "rejected_rows")


class ItemKind(NamedTuple):
    """Train frequency of an item, its bin (0: inactive), and whether it has a text."""

    frequency: int
    bin: int
    has_text: bool


@dataclass(frozen=True)
class Measures:
    """Exact histograms of one version.

    Attributes:
        lengths: history length -> users.
        items: number of items of each kind.
        text_lengths: characters -> active items that have a text of this length.
        valid_users: users with a validation target.
        test_users: users with a test target.
    """

    lengths: Histogram
    items: Mapping[ItemKind, int]
    text_lengths: Histogram
    valid_users: int
    test_users: int


@dataclass(frozen=True)
class Turnover:
    """Users, events and items that came and went since the previous version.

    Attributes:
        new_users: in this version alone.
        gone_users: in the previous version alone: erased, or with too few events now.
        new_events: by which histories grew, summed over users.
        gone_events: by which histories shrank, summed over users.
        new_items: items that this version adds.
        gone_items: active before, inactive now: erased, or out of the k-core.
        returned_items: inactive before, active now.
        events_on_new_items: events of this version on `new_items`.
    """

    new_users: int
    gone_users: int
    new_events: int
    gone_events: int
    new_items: int
    gone_items: int
    returned_items: int
    events_on_new_items: int


def build_quality(manifest: Manifest, measures: Measures, samples: Mapping[str, list[str]]) -> dict[str, Any]:
    """The content of quality.json; "drift" is None until the caller sets it to `build_drift` of two versions.

    Args:
        manifest: counts and rejected rows.
        measures: of the version's files.
        samples: some rejected rows, by reason.
    """
    items = measures.items
    active = {kind: n for kind, n in items.items() if kind.bin > 0}
    frequencies = _histogram((kind.frequency, n) for kind, n in active.items())
    without_text = {kind: n for kind, n in active.items() if not kind.has_text}
    events = _events(active)
    bins = sorted({kind.bin for kind in active})
    counts = {
        **manifest.counts,
        "items": sum(items.values()),
        "active_items": sum(active.values()),
        "unseen_items": frequencies.get(0, 0),
        "items_without_text": sum(without_text.values()),
        "train_events": events,
        "valid_users": measures.valid_users,
        "test_users": measures.test_users,
        "rejected_rows": sum(manifest.rejected.values()),
    }
    return {
        "schema_version": QUALITY_SCHEMA,
        "counts": counts,
        "rejected": {
            reason: {"rows": rows, "samples": list(samples.get(reason, []))}
            for reason, rows in sorted(manifest.rejected.items())
        },
        "history_length": {"histogram": buckets(measures.lengths), "quantiles": quantiles(measures.lengths)},
        "popularity": {
            "histogram": buckets(frequencies),
            "quantiles": quantiles(frequencies),
            "top_1_percent": top_share(frequencies, 1),
            "top_10_percent": top_share(frequencies, 10),
        },
        "bins": [
            {"bin": b, "items": sum(part.values()), "events": _events(part)}
            for b in bins
            for part in [{kind: n for kind, n in active.items() if kind.bin == b}]
        ],
        "text": {
            "share_of_items": _share(counts["active_items"] - counts["items_without_text"], counts["active_items"]),
            "share_of_events": _share(events - _events(without_text), events),
            "quantiles": quantiles(measures.text_lengths),
        },
        "drift": None,
    }


def build_drift(
    before: Mapping[str, Any], now: Mapping[str, Any], turnover: Turnover | None = None, previous: str | None = None
) -> dict[str, Any]:
    """How quality `now` differs from quality `before`, of any two versions.

    Distances run from 0 (equal) to 1 (nothing shared): Jensen-Shannon distance (base 2)
    for the histograms of history length and popularity, total variation for bins.

    Args:
        before: content of the earlier quality.json.
        now: content of the later one.
        turnover: given if `before` is the previous version.
        previous: content hash of the previous version.
    """
    counts = {name: [before["counts"].get(name, 0), now["counts"].get(name, 0)] for name in _COUNTED}
    drift: dict[str, Any] = {
        "previous": previous,
        "counts": counts,
        "distances": {
            "history length": _js_distance(*(_by_bucket(q["history_length"]) for q in (before, now))),
            "popularity": _js_distance(*(_by_bucket(q["popularity"]) for q in (before, now))),
            "items by bin": _total_variation(*(_by_bin(q, "items") for q in (before, now))),
            "events by bin": _total_variation(*(_by_bin(q, "events") for q in (before, now))),
        },
        "turnover": None,
    }
    if turnover is not None:
        share = _share(turnover.events_on_new_items, counts["interactions"][1])
        drift["turnover"] = {**vars(turnover), "share_of_events_on_new_items": share}
    return {**drift, "moved": _moved(drift)}


def _moved(drift: Mapping[str, Any]) -> list[str]:
    """One plain line per fact that moved by more than NOTEWORTHY."""
    lines = []
    for name, (before, now) in drift["counts"].items():
        if abs(now - before) > NOTEWORTHY * before:
            change = f"{now / before - 1:+.1%}" if before else "from none"
            lines.append(f"{name.replace('_', ' ')} went from {before:,} to {now:,} ({change})")
    for name, distance in drift["distances"].items():
        if distance > NOTEWORTHY:
            lines.append(f"the distribution of {name} moved by {distance:.2f} of 1")
    if turnover := drift["turnover"]:
        before_users, before_events = drift["counts"]["users"][0], drift["counts"]["interactions"][0]
        for name, base in (("gone_users", before_users), ("gone_events", before_events)):
            if turnover[name] > NOTEWORTHY * base:
                lines.append(f"{turnover[name]:,} of {base:,} {name.removeprefix('gone_')} of before are gone")
        if (share := turnover["share_of_events_on_new_items"]) > NOTEWORTHY:
            lines.append(f"{share:.1%} of all events are on items that the version before did not have")
    return lines


def bucket(value: int) -> tuple[int, int]:
    """First and last value of the bucket of `value`: one value up to 9, then ten buckets per decade.

    >>> bucket(7), bucket(13), bucket(123)
    ((7, 7), (12, 14), (120, 149))
    """
    if value < 10:
        return value, value
    unit: int = 10 ** (len(str(value)) - 2)
    place = bisect_right(_EDGES, value // unit)
    return _EDGES[place - 1] * unit, _EDGES[place] * unit - 1


def buckets(histogram: Histogram) -> list[list[int]]:
    """[first value, last value, count] of each bucket that is not empty, ascending."""
    counted: Counter[tuple[int, int]] = Counter()
    for value, count in histogram.items():
        counted[bucket(value)] += count
    return [[first, last, counted[first, last]] for first, last in sorted(counted)]


def quantiles(histogram: Histogram) -> dict[str, float]:
    """min, p1 to p99, max (values that occur) and mean; {} for an empty histogram.

    >>> quantiles({5: 98, 6: 1, 90: 1})["p99"]
    6
    """
    if not histogram:
        return {}
    total, reached, values = sum(histogram.values()), 0, sorted(histogram)
    result: dict[str, float] = {"min": values[0]}
    wanted = list(_QUANTILES.items())
    for value in values:
        reached += histogram[value]
        while wanted and 100 * reached >= wanted[0][1] * total:
            result[wanted.pop(0)[0]] = value
    mean = sum(value * count for value, count in histogram.items()) / total
    return {**result, "max": values[-1], "mean": round(mean, 3)}


def top_share(frequencies: Histogram, percent: int) -> float:
    """Share of all events on the `percent` % most frequent items (at least one item).

    >>> top_share({100: 1, 1: 100}, 1)  # two of 101 items
    0.505
    """
    left = -(-percent * sum(frequencies.values()) // 100)
    mass = 0
    for frequency in sorted(frequencies, reverse=True):
        taken = min(left, frequencies[frequency])
        mass, left = mass + taken * frequency, left - taken
    return _share(mass, sum(frequency * count for frequency, count in frequencies.items()))


def _histogram(pairs: Iterable[tuple[int, int]]) -> dict[int, int]:
    counted: Counter[int] = Counter()
    for value, count in pairs:
        counted[value] += count
    return dict(counted)


def _events(items: Mapping[ItemKind, int]) -> int:
    return sum(kind.frequency * n for kind, n in items.items())


def _share(part: int, total: int) -> float:
    return round(part / total, 6) if total else 0.0


def _by_bucket(part: Mapping[str, Any]) -> dict[int, int]:
    return {first: count for first, _, count in part["histogram"]}


def _by_bin(quality: Mapping[str, Any], what: str) -> dict[int, int]:
    return {entry["bin"]: entry[what] for entry in quality["bins"]}


def _shares(a: Histogram, b: Histogram) -> list[tuple[float, float]]:
    """Probabilities of each value in both histograms."""
    total_a, total_b = max(1, sum(a.values())), max(1, sum(b.values()))
    return [(a.get(value, 0) / total_a, b.get(value, 0) / total_b) for value in sorted({*a, *b})]


def _total_variation(a: Histogram, b: Histogram) -> float:
    return round(math.fsum(abs(p - q) for p, q in _shares(a, b)) / 2, 6)


def _js_distance(a: Histogram, b: Histogram) -> float:
    terms = [share * math.log2(2 * share / (p + q)) / 2 for p, q in _shares(a, b) for share in (p, q) if share > 0]
    return round(math.sqrt(max(0.0, math.fsum(terms))), 6)
