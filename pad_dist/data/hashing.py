"""Stateless randomness: a hash of integers in place of a generator's state.

Order, negatives and partitions are hashes of their keys (seed, epoch, row,
position ...), so that they do not depend on the world size, on earlier draws,
or on where a run was resumed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

# splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014):
# the odd increment is 2^64 / golden ratio, the multipliers are its published finalizer's.
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)

# First part after the seed, so that two uses never share a stream.
(
    SHARD_ORDER,
    ROW_ORDER,
    UNIFORM_NEGATIVE,
    SHARED_NEGATIVE,
    SAMPLED_ITEM,
    DROPOUT,
    IN_BATCH_NEGATIVE,
    ID_VECTOR,
    MASKED_ITEM,
    DISTANCE_SAMPLE,
) = range(1, 11)


def hash_ids(*parts: ArrayLike) -> NDArray[np.uint64]:
    """Hash integers (arrays broadcast against one another) to 64 uniform bits.

    With all other parts equal, different last parts give different hashes, so
    sorting by them is a permutation without ties.
    """
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):  # uint64 arithmetic is meant to wrap
        for part in parts:
            state = _mix((state ^ np.asarray(part).astype(np.uint64)) + _INCREMENT)
    return np.asarray(state)


def hash_share(share: float, *parts: ArrayLike) -> NDArray[np.bool_]:
    """Whether each key is in a sample of about that share of all keys."""
    # As many bits as a double has: a place rounded up to 1 would be in no sample.
    sampled: NDArray[np.bool_] = (hash_ids(*parts) >> np.uint64(11)) * 2.0**-53 < share
    return sampled


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * _MULTIPLIER_1
    state = (state ^ (state >> np.uint64(27))) * _MULTIPLIER_2
    return state ^ (state >> np.uint64(31))
