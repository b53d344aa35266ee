"""Negative items: pure functions of the seed and of the step, row or position that they are for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pad_dist.data.hashing import IN_BATCH_NEGATIVE, SHARED_NEGATIVE, UNIFORM_NEGATIVE, hash_ids
from pad_dist.errors import UserError

Ints = NDArray[np.int64]


def uniform_negatives(
    seed: int, epoch: int, rows: Ints, sizes: Ints, train_items: Ints, train_lengths: Ints, num_items: int
) -> Ints:
    """One uniform draw per position from [1, num_items] outside the user's train items.

    See docs/method.md, "Recommendation losses". A draw depends on (seed, epoch, row, position, attempt) alone.

    Args:
        rows: [B] row number of each user in the dataset.
        sizes: [B] draws per user.
        train_items: [T] train items of each user, end to end; repeats are fine.
        train_lengths: [B] train items per user.

    Returns:
        [sum(sizes)] item indices, users end to end.

    Raises:
        UserError: a user's train items are the whole catalogue.
    """
    places = np.arange(len(rows))
    stride = num_items + 1
    taken = np.unique(np.repeat(places, train_lengths) * stride + train_items)
    full = np.bincount(taken // stride, minlength=len(rows)) >= num_items
    if full.any():
        raise UserError(
            f"the user of row {rows[full][0]} has all {num_items} items in the train part, no negative is left: "
            "set training.loss.kind=sampled_softmax"
        )
    user = np.repeat(places, sizes)
    position = np.arange(len(user)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    draws = np.zeros(len(user), np.int64)
    pending = np.arange(len(user))
    attempt = 0
    while len(pending):
        owner = user[pending]
        bits = hash_ids(seed, UNIFORM_NEGATIVE, epoch, rows[owner], position[pending], attempt)
        draws[pending] = _items(bits, num_items)
        keys = owner * stride + draws[pending]
        is_taken = taken[np.minimum(np.searchsorted(taken, keys), len(taken) - 1)] == keys
        pending = pending[is_taken]
        attempt += 1
    return draws


def shared_negatives(seed: int, epoch: int, step: int, count: int, num_items: int) -> Ints:
    """Negatives of one global batch: [count] uniform with replacement.

    With count >= num_items it is every item once: the full softmax.
    """
    if count >= num_items:
        return np.arange(1, num_items + 1)
    return _items(hash_ids(seed, SHARED_NEGATIVE, epoch, step, np.arange(count)), num_items)


def in_batch_negatives(seed: int, epoch: int, step: int, count: int, targets: Ints) -> Ints:
    """[count] of the targets [T] of one global batch, uniform with replacement; none where T = 0."""
    if not len(targets):
        return targets
    bits = hash_ids(seed, IN_BATCH_NEGATIVE, epoch, step, np.arange(count))
    return targets[(bits % np.uint64(len(targets))).astype(np.int64)]


def _items(bits: NDArray[np.uint64], num_items: int) -> Ints:
    # The modulo's bias is below num_items / 2^64.
    return (bits % np.uint64(num_items)).astype(np.int64) + 1
