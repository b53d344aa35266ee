"""Batches of one rank, built from shards by vectorised NumPy (docs/method.md, "Data and split")."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pad_dist.config import NegativeSampling
from pad_dist.data.batches import Batch, EvalBatch
from pad_dist.data.hashing import SAMPLED_ITEM, hash_share
from pad_dist.data.negatives import in_batch_negatives, shared_negatives, uniform_negatives
from pad_dist.data.order import epoch_batches, rank_slice, steps_per_epoch
from pad_dist.dataset.reader import Dataset, Histories, ranges

Ints = NDArray[np.int64]
Split = Literal["train", "valid"]
"""The split whose targets training learns."""
T = TypeVar("T")


def train_batches(
    dataset: Dataset,
    *,
    epoch: int,
    seed: int,
    batch_size: int,
    max_length: int,
    loss: NegativeSampling,
    rank: int,
    world_size: int,
    start_step: int = 0,
    occurrence_share: float = 1.0,
    targets: Split = "train",
) -> Iterator[Batch]:
    """This rank's slices of the epoch's global batches; a thread builds one batch ahead.

    A user's sample is the last L + 1 items of the train part, the first `train` of
    the history: the input all but the last, the target all but the first. A user with
    fewer than two train items is left out of the batch. A global batch may have no
    position at all.

    Every rank gets steps_per_epoch(dataset.users, batch_size) - start_step batches,
    with B = P = 0 if its slice is empty. `items` always starts with 0, padding, so
    that it is never empty. `occurrences` counts the sample tables, [B, L + 1] with
    left padding, and the negatives. For bce these are a table of the same shape (one
    draw per item of the sample, the last one used for counting only). Shared negatives
    are the [K] ids (the uniform ones, then the in-batch negatives), counted on rank 0
    alone. The full softmax draws no negatives and counts none. With `occurrence_share`
    < 1 only about that share of the items, drawn anew each step, keeps its count; the
    others have 0. Padding keeps that share of its count in every step.

    With `targets` "valid" a sample ends in the user's validation target, the only
    `scored` one. Users without one are left out.

    `positions` is the count of THIS rank: the training loop sums it over ranks.
    """

    def build() -> Iterator[Batch]:
        steps = epoch_batches(seed, epoch, dataset.shard_rows, batch_size, start_step)
        for step, rows in enumerate(steps, start_step):
            local_rows = rank_slice(rows, rank, world_size)
            if loss.per_position:
                batch = _train_batch(dataset, local_rows, max_length, (seed, epoch), None, 1.0, targets)
            else:
                shared = _shared(dataset, rows, max_length, (seed, epoch, step), loss, targets)
                counted = float(rank == 0 and loss.is_sampled)
                batch = _train_batch(dataset, local_rows, max_length, (seed, epoch), shared, counted, targets)
            sampled = _sampled(batch.items, (seed, epoch, step), occurrence_share)
            yield replace(batch, occurrences=batch.occurrences * sampled)

    return _prefetch(build())


def eval_batches(
    dataset: Dataset, split: Literal["valid", "test"], *, batch_size: int, max_length: int, rank: int, world_size: int
) -> Iterator[EvalBatch]:
    """This rank's slices of all users in shard order; users without a target of the split are left out.

    The context is the last L items before the target, the history all of them.
    Every rank gets the same number of batches, with B = 0 if its slice is empty.
    `items` always starts with 0, so that it is never empty.
    """

    def build() -> Iterator[EvalBatch]:
        for step in range(steps_per_epoch(dataset.users, batch_size)):
            rows = np.arange(step * batch_size, min((step + 1) * batch_size, dataset.users))
            yield _eval_batch(dataset, rank_slice(rows, rank, world_size), split, max_length)

    return _prefetch(build())


def _shared(
    dataset: Dataset, rows: Ints, max_length: int, key: tuple[int, int, int], loss: NegativeSampling, targets: Split
) -> Ints:
    """[K] negatives of the global batch of these rows, the same on every rank."""
    uniform = shared_negatives(*key, loss.uniform(dataset.items), dataset.items)
    if not loss.from_batch:
        return uniform
    sample, _, is_target = _samples(dataset.gather(rows), max_length, targets)
    return np.concatenate([uniform, in_batch_negatives(*key, loss.from_batch, sample[is_target])])


def _lengths(histories: Histories, targets: Split) -> Ints:
    """[users] items up to the last target; fewer than 2 for a user without a target."""
    return histories.train if targets == "train" else histories.valid + 1


def _samples(histories: Histories, max_length: int, targets: Split) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    """Up to L + 1 items, the last target the last one, of each user with a target; sizes [B]; which are targets."""
    lengths = _lengths(histories, targets)
    kept = lengths >= 2
    starts, lengths = histories.offsets[:-1][kept], lengths[kept]
    sizes = np.minimum(lengths, max_length + 1)
    sample = histories.items[ranges(starts + lengths - sizes, sizes)]
    is_target = np.full(len(sample), targets == "train")
    is_target[np.cumsum(sizes) - sizes] = False
    is_target[np.cumsum(sizes) - 1] = True
    return sample, sizes, is_target


def _train_batch(
    dataset: Dataset,
    rows: Ints,
    max_length: int,
    key: tuple[int, int],
    shared: Ints | None,
    negative_weight: float,
    targets: Split,
) -> Batch:
    histories = dataset.gather(rows)
    sample, sizes, is_target = _samples(histories, max_length, targets)
    padding = len(sizes) * (max_length + 1) - len(sample)
    is_input = np.ones(len(sample), bool)
    is_input[np.cumsum(sizes) - 1] = False

    if shared is None:
        lengths = _lengths(histories, targets)
        kept = lengths >= 2
        lengths = lengths[kept]
        train_items = histories.items[ranges(histories.offsets[:-1][kept], lengths)]
        negatives = uniform_negatives(*key, rows[kept], sizes, train_items, lengths, dataset.items)
        padding *= 2
    else:
        negatives = shared

    entries = np.concatenate([[0], sample, negatives])
    weights = np.concatenate([[padding], np.ones(len(sample)), np.full(len(negatives), negative_weight)])
    items, places = np.unique(entries, return_inverse=True)
    sample_places, negative_places = places[1 : len(sample) + 1], places[len(sample) + 1 :]
    target_places = sample_places[is_target]
    scored = None if targets == "train" else np.cumsum(sizes - 1) - 1
    if shared is None:
        # The draw of an item before a target is that target's.
        negative_places = negative_places[np.roll(is_target, -1)]
    return Batch(
        items=_tensor(items),
        lengths=_tensor(sizes - 1),
        inputs=_tensor(sample_places[is_input]),
        targets=_tensor(target_places),
        negatives=_tensor(negative_places),
        occurrences=torch.from_numpy(np.bincount(places, weights).astype(np.float32)),
        positions=torch.tensor(len(target_places)),
        shared_negatives=shared is not None,
        scored=None if scored is None else _tensor(scored),
    )


def _sampled(items: Tensor, key: tuple[int, int, int], share: float) -> Tensor:
    """[U] 1 for an item in the step's sample, else 0; `share` for padding, the first item.

    A hash of (seed, epoch, step, item) decides, so that all ranks agree.
    """
    seed, epoch, step = key
    weights = hash_share(share, seed, SAMPLED_ITEM, epoch, step, items.numpy()).astype(np.float32)
    weights[0] = share
    return torch.from_numpy(weights)


def _eval_batch(dataset: Dataset, rows: Ints, split: Literal["valid", "test"], max_length: int) -> EvalBatch:
    histories = dataset.gather(rows)
    place = histories.valid if split == "valid" else histories.test
    kept = place >= 0
    starts, lengths = histories.offsets[:-1][kept], place[kept]
    target = starts + lengths
    sizes = np.minimum(lengths, max_length)
    context = histories.items[ranges(target - sizes, sizes)]
    items, places = np.unique(np.concatenate([[0], context]), return_inverse=True)
    return EvalBatch(
        items=_tensor(items),
        lengths=_tensor(sizes),
        inputs=_tensor(places[1:]),
        targets=_tensor(histories.items[target]),
        history=_tensor(histories.items[ranges(starts, lengths)]),
        history_lengths=_tensor(lengths),
    )


def _tensor(values: Ints) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.int64))


def _prefetch(batches: Iterator[T]) -> Iterator[T]:
    """Build the next batch in a thread while the caller works on this one."""
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(next, batches, None)
        while (batch := upcoming.result()) is not None:
            upcoming = pool.submit(next, batches, None)
            yield batch
