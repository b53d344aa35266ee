"""Quality as arithmetic on histograms, and its page."""

import copy
import itertools
import math
import random
from html.parser import HTMLParser
from typing import Any

import pytest

from pad_dist.dataset.manifest import Manifest
from pad_dist.dataset.quality import (
    ItemKind,
    Measures,
    Turnover,
    bucket,
    buckets,
    build_drift,
    build_quality,
    quantiles,
    top_share,
)
from pad_dist.dataset.quality_page import quality_page

MANIFEST = Manifest(
    counts={"users": 6, "items": 7, "interactions": 60, "raw_events": 70},
    parameters={},
    groups={},
    rejected={"interactions: time is blank": 2, "interactions: <b>&": 1},
)
ITEMS = {
    ItemKind(30, 1, True): 1,
    ItemKind(3, 2, True): 2,
    ItemKind(2, 2, False): 1,
    ItemKind(0, 2, False): 1,
    ItemKind(0, 0, False): 2,
}
MEASURES = Measures(lengths={5: 4, 20: 2}, items=ITEMS, text_lengths={10: 2, 31: 1}, valid_users=5, test_users=6)
STILL = Turnover(0, 0, 0, 0, 0, 0, 0, 0)


def quality(**changes: Any) -> dict[str, Any]:
    return build_quality(MANIFEST, Measures(**(vars(MEASURES) | changes)), {})


def test_quality_counts_every_part() -> None:
    made = build_quality(MANIFEST, MEASURES, {"interactions: <b>&": ["row"]})
    assert made["counts"] == {
        "users": 6,
        "items": 7,
        "interactions": 60,
        "raw_events": 70,
        "active_items": 5,
        "unseen_items": 1,
        "items_without_text": 2,
        "train_events": 38,
        "valid_users": 5,
        "test_users": 6,
        "rejected_rows": 3,
    }
    assert made["rejected"]["interactions: <b>&"] == {"rows": 1, "samples": ["row"]}
    assert made["rejected"]["interactions: time is blank"] == {"rows": 2, "samples": []}
    assert made["history_length"]["histogram"] == [[5, 5, 4], [20, 24, 2]]
    # Inactive items are no part of popularity, bins and texts.
    assert made["popularity"]["histogram"] == [[0, 0, 1], [2, 2, 1], [3, 3, 2], [30, 39, 1]]
    assert made["popularity"]["top_1_percent"] == made["popularity"]["top_10_percent"] == round(30 / 38, 6)
    assert made["bins"] == [{"bin": 1, "items": 1, "events": 30}, {"bin": 2, "items": 4, "events": 8}]
    assert made["text"]["share_of_items"] == 0.6
    assert made["text"]["share_of_events"] == round(36 / 38, 6)
    assert made["drift"] is None


def test_buckets_meet_without_gap_or_overlap() -> None:
    ends = sorted({bucket(value) for value in range(20_000)})
    assert ends[0] == (0, 0)
    assert all(last + 1 == first for (_, last), (first, _) in itertools.pairwise(ends))
    for value in range(20_000):
        first, last = bucket(value)
        assert first <= value <= last


def test_a_bucket_is_a_tenth_of_a_decade() -> None:
    assert [bucket(10**n)[0] for n in range(12)] == [10**n for n in range(12)]
    assert len({bucket(value) for value in range(1000, 10_000)}) == 10


def test_quantiles_are_those_of_the_values_written_out() -> None:
    rng = random.Random(0)
    for _ in range(50):
        values = sorted(rng.randrange(30) for _ in range(rng.randint(1, 200)))
        found = quantiles({value: values.count(value) for value in values})
        wanted = {f"p{p}": values[math.ceil(len(values) * p / 100) - 1] for p in (1, 10, 50, 90, 99)}
        mean = round(sum(values) / len(values), 3)
        assert found == {"min": values[0], **wanted, "max": values[-1], "mean": mean}
    assert quantiles({}) == {}


def test_the_top_share_is_that_of_the_items_written_out() -> None:
    rng = random.Random(1)
    for _ in range(50):
        items = sorted((rng.randrange(9) for _ in range(rng.randint(1, 300))), reverse=True)
        top = items[: math.ceil(len(items) / 10)]
        expected = sum(top) / sum(items) if any(items) else 0
        assert top_share({f: items.count(f) for f in items}, 10) == pytest.approx(expected, abs=1e-6)


def test_the_order_of_histograms_does_not_matter() -> None:
    turned = {
        name: dict(reversed(list(value.items()))) if isinstance(value, dict) else value
        for name, value in vars(MEASURES).items()
    }
    assert quality(**turned) == quality()
    assert list(quality(**turned)["rejected"]) == sorted(MANIFEST.rejected)
    assert buckets({20: 1, 5: 2, 21: 1}) == [[5, 5, 2], [20, 24, 2]]


def test_equal_versions_have_no_drift() -> None:
    drift = build_drift(quality(), quality(), STILL)
    assert set(drift["distances"].values()) == {0.0}
    assert drift["moved"] == []


def test_distances_are_one_where_nothing_is_shared() -> None:
    other = {ItemKind(700, 9, True): 5}
    drift = build_drift(quality(), quality(lengths={90: 6}, items=other))
    assert set(drift["distances"].values()) == {1.0}
    assert any("distribution of history length moved by 1.00 of 1" in line for line in drift["moved"])


def test_the_js_distance_is_that_of_its_definition() -> None:
    # P = (2/3, 1/3), Q = (1/3, 2/3), M = (1/2, 1/2): both divergences are equal.
    divergence = 2 / 3 * math.log2(4 / 3) + 1 / 3 * math.log2(2 / 3)
    drift = build_drift(quality(), quality(lengths={5: 2, 20: 4}))
    assert drift["distances"]["history length"] == pytest.approx(math.sqrt(divergence), abs=1e-6)


def test_total_variation_is_the_mass_that_moves() -> None:
    items = {**ITEMS, ItemKind(30, 1, True): 0, ItemKind(15, 2, True): 2}
    drift = build_drift(quality(), quality(items=items))
    assert drift["distances"]["events by bin"] == round(30 / 38, 6)
    assert drift["distances"]["items by bin"] == 0.2


@pytest.mark.parametrize(
    ("turnover", "words"),
    [
        ({"gone_users": 1}, "1 of 6 users of before are gone"),
        ({"gone_events": 7}, "7 of 60 events of before are gone"),
        ({"events_on_new_items": 7}, "11.7% of all events are on items that the version before did not have"),
    ],
)
def test_what_moved_by_more_than_a_tenth_is_told_in_words(turnover: dict[str, int], words: str) -> None:
    assert build_drift(quality(), quality(), Turnover(**{**vars(STILL), **turnover}))["moved"] == [words]
    little = {name: 6 if name != "gone_users" else 0 for name in turnover}
    assert build_drift(quality(), quality(), Turnover(**{**vars(STILL), **little}))["moved"] == []


def test_a_count_that_grew_is_told_with_its_change() -> None:
    before = copy.deepcopy(quality())
    before["counts"] |= {"users": 5, "rejected_rows": 0}
    moved = build_drift(before, quality())["moved"]
    assert moved == ["users went from 5 to 6 (+20.0%)", "rejected rows went from 0 to 3 (from none)"]


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)
        assert not any(name in ("src", "href") or name.startswith("on") for name, _ in attrs)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_self_contained_and_escaped() -> None:
    evil = '<script>alert("x")</script>'
    made = build_quality(MANIFEST, MEASURES, {"interactions: <b>&": [evil]})
    made["drift"] = build_drift(quality(lengths={90: 6}), made, STILL, "abc")
    made["drift"]["moved"].append(evil)
    page = quality_page(made, evil)
    parser = _Tags()
    parser.feed(page)
    parser.close()
    assert not parser.open
    assert not parser.seen & {"script", "b", "link", "img"}
    assert parser.text.count(evil) == 4  # title twice, sample, moved
    for text in ("interactions: <b>&", "training events per active item: min 0", "20 to 24", "78.9%", "gone users"):
        assert text in parser.text


def test_the_page_of_the_first_version_and_of_nothing_at_all_is_readable() -> None:
    nothing = build_quality(Manifest(counts={}, parameters={}, groups={}), Measures({}, {}, {}, 0, 0), {})
    assert "The first version" in quality_page(nothing, "000001-0a0b0c0d")
