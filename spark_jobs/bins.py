"""Frequency bins: items in order of popularity, cut into bins with about equal shares of the interactions.

See docs/method.md, "Data and split".

Everything here works on the histogram of frequencies. It is small: T interactions have
fewer than sqrt(2 T) distinct frequencies, whatever the number of items.
"""

from __future__ import annotations

from collections.abc import Mapping

BINS = 10


def bin_cuts(histogram: Mapping[int, int]) -> list[int]:
    """Cut the popularity order: bin b holds positions cuts[b - 1] to cuts[b] - 1.

    A bin takes items, most frequent first, until it holds a tenth of all
    interactions. The last bin takes the rest. Items never seen go to the last bin,
    even if few popular items leave earlier bins empty.

    Args:
        histogram: train frequency -> number of items that have it.

    Returns:
        BINS + 1 ascending positions, from 0 to the number of items.
    """
    total = sum(frequency * items for frequency, items in histogram.items())
    cuts, position, mass = [0], 0, 0
    for frequency in sorted((f for f in histogram if f > 0), reverse=True):
        left = histogram[frequency]
        while len(cuts) < BINS:
            # Fewest items that bring BINS * mass up to the total: integers, so exact at any size.
            wanted = -(-(total - BINS * mass) // (BINS * frequency))
            if wanted > left:
                break
            position, left, mass = position + wanted, left - wanted, 0
            cuts.append(position)
        position, mass = position + left, mass + left * frequency
    return cuts + [position] * (BINS - len(cuts)) + [sum(histogram.values())]
