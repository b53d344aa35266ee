"""Frequency bins: items in order of popularity, cut into bins of equal interaction mass (METHOD, data and split).

Everything here works on the histogram of frequencies, which is small: T
interactions have fewer than sqrt(2 T) distinct frequencies, however many items.
"""

from __future__ import annotations

from collections.abc import Mapping

BINS = 10


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
