"""Frequency bins: items in order of popularity, cut into bins of equal interaction mass (METHOD, data and split).

Everything here works on the histogram of frequencies, which is small: T
interactions have fewer than sqrt(2 T) distinct frequencies, however many items.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

BINS = 10

Ints = npt.NDArray[np.int64]


def bin_cuts(histogram: Mapping[int, int]) -> list[int]:
    """Where the popularity order is cut: bin b holds ranks cuts[b - 1] to cuts[b] - 1.

    A bin takes items, most frequent first, until it holds a tenth of all
    interactions; the last one takes the rest. Items never seen go to the last bin,
    also where few popular items leave bins before it empty.

    Args:
        histogram: train frequency -> number of items that have it.

    Returns:
        BINS + 1 ascending ranks, from 0 to the number of items.
    """
    total = sum(frequency * items for frequency, items in histogram.items())
    cuts, rank, mass = [0], 0, 0
    for frequency in sorted((f for f in histogram if f > 0), reverse=True):
        left = histogram[frequency]
        while len(cuts) < BINS:
            # Fewest items that bring BINS * mass up to the total: integers, so exact at any size.
            wanted = -(-(total - BINS * mass) // (BINS * frequency))
            if wanted > left:
                break
            rank, left, mass = rank + wanted, left - wanted, 0
            cuts.append(rank)
        rank, mass = rank + left, mass + left * frequency
    return cuts + [rank] * (BINS - len(cuts)) + [sum(histogram.values())]


def first_ranks(histogram: Mapping[int, int]) -> dict[int, int]:
    """Rank of the first item of each frequency in the popularity order."""
    ranks, rank = {}, 0
    for frequency in sorted(histogram, reverse=True):
        ranks[frequency] = rank
        rank += histogram[frequency]
    return ranks


def cut_frequencies(histogram: Mapping[int, int], cuts: list[int]) -> list[int]:
    """Frequencies whose items fall in more than one bin, so that ties must be broken."""
    first = first_ranks(histogram)
    return [f for f, items in histogram.items() if any(first[f] < cut < first[f] + items for cut in cuts)]


def bins_of(frequencies: Ints, next_rank: dict[int, int], cuts: list[int]) -> Ints:
    """Bins of consecutive items, in item_index order; advances `next_rank` of the frequencies it meets.

    Among items of equal frequency the lower item_index has the lower rank.

    Args:
        frequencies: [n] train frequency of each item.
        next_rank: frequency -> rank of its next item.
    """
    bins = np.empty(len(frequencies), np.int64)
    for frequency in np.unique(frequencies).tolist():
        places = np.flatnonzero(frequencies == frequency)
        ranks = next_rank[frequency] + np.arange(len(places))
        next_rank[frequency] += len(places)
        bins[places] = np.searchsorted(cuts[1:-1], ranks, side="right") + 1
    return bins
