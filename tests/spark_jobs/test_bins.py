"""Frequency bins against a plain walk over the items."""

from collections import Counter

import numpy as np
import pytest

from spark_jobs.bins import BINS, bin_cuts


def walk(frequencies: list[int]) -> list[int]:
    """Bin of each item, the plain way."""
    order = sorted(range(len(frequencies)), key=lambda item: (-frequencies[item], item))
    bins, current, mass = [BINS] * len(frequencies), 1, 0
    for item in order:
        if frequencies[item] == 0:
            continue
        bins[item] = current
        mass += frequencies[item]
        if current < BINS and BINS * mass >= sum(frequencies):
            current, mass = current + 1, 0
    return bins


def bins_of(frequencies: list[int]) -> list[int]:
    """Bin of each item from the cuts, items being in key order."""
    cuts = bin_cuts(Counter(frequencies))
    order = sorted(range(len(frequencies)), key=lambda item: (-frequencies[item], item))
    rank = {item: place for place, item in enumerate(order)}
    return [1 + sum(rank[item] >= cut for cut in cuts[1:-1]) for item in range(len(frequencies))]


@pytest.mark.parametrize("seed", range(20))
def test_bins_equal_a_walk_over_the_items_in_popularity_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frequencies = rng.zipf(1.3 + seed / 20, size=rng.integers(1, 400)).clip(max=500)
    frequencies = (frequencies - rng.integers(0, 2)).tolist()
    if sum(frequencies):
        assert bins_of(frequencies) == walk(frequencies)


def test_each_bin_but_the_last_holds_at_least_a_tenth_of_the_interactions() -> None:
    frequencies = np.random.default_rng(0).zipf(1.5, size=900).clip(max=100)
    bins = np.array(bins_of(frequencies.tolist()))
    masses = [frequencies[bins == b].sum() for b in range(1, BINS)]
    assert min(masses) * BINS >= frequencies.sum()


def test_an_item_that_takes_all_interactions_leaves_the_unseen_in_the_last_bin() -> None:
    assert bin_cuts({70: 1, 0: 4}) == [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 5]
    assert bins_of([0, 70, 0, 0, 0]) == [10, 1, 10, 10, 10]


def test_cuts_divide_items_of_equal_frequency() -> None:
    assert bin_cuts({5: 2, 1: 90}) == [0, 2, 12, 22, 32, 42, 52, 62, 72, 82, 92]
