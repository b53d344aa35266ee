import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from pad_dist.config import BceConfig, NegativeSampling, SampledSoftmaxConfig, SoftmaxConfig
from pad_dist.data.batches import Batch, EvalBatch
from pad_dist.data.hashing import SAMPLED_ITEM, hash_ids
from pad_dist.data.loader import eval_batches, train_batches
from pad_dist.data.negatives import in_batch_negatives
from pad_dist.data.order import epoch_batches, rank_slice, steps_per_epoch
from pad_dist.dataset.reader import Dataset
from pad_dist.errors import UserError
from tests.support.tiny_dataset import Splits, leave_one_out, random_sequences, time_splits, write_tiny_dataset

ITEMS, L, BATCH = 40, 5, 16
SEQUENCES = random_sequences(55, ITEMS, longest=14)
BCE = BceConfig()
SHARED = SampledSoftmaxConfig(negatives=12)
IN_BATCH = SampledSoftmaxConfig(negatives=12, in_batch=30)
FULL = SoftmaxConfig()
SPLITS = {"leave-one-out": leave_one_out(SEQUENCES)} | {f"time {i}": time_splits(SEQUENCES, i) for i in range(3)}
LOSSES = pytest.mark.parametrize("loss", [BCE, SHARED, IN_BATCH, FULL], ids=["bce", "shared", "in_batch", "full"])


def shared_count(loss: NegativeSampling, positions: bool = True) -> int:
    """Shared negatives of a global batch, with or without positions in it."""
    return 0 if loss is BCE else ITEMS if loss is FULL else 12 + (loss.from_batch if positions else 0)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    folder = tmp_path_factory.mktemp("datasets")
    return {
        name: Dataset.open(write_tiny_dataset(folder / name, SEQUENCES, ITEMS, splits=splits))
        for name, splits in SPLITS.items()
    }


@pytest.fixture(scope="module")
def dataset(datasets: dict[str, Dataset]) -> Dataset:
    return datasets["leave-one-out"]


def train(dataset: Dataset, loss: NegativeSampling, rank: int = 0, world_size: int = 1, **changes: Any) -> list[Batch]:
    settings = {"epoch": 2, "seed": 7, "batch_size": BATCH, "max_length": L} | changes
    return list(train_batches(dataset, loss=loss, rank=rank, world_size=world_size, **settings))


def split(values: Tensor, lengths: Tensor) -> list[list[int]]:
    return [part.tolist() for part in values.split(lengths.tolist())]


def equal(one: Batch | EvalBatch, other: Batch | EvalBatch) -> bool:
    def same(a: Any, b: Any) -> bool:
        return a is b is None or torch.equal(torch.as_tensor(a), torch.as_tensor(b))

    return all(same(a, vars(other)[name]) for name, a in vars(one).items())


@LOSSES
@pytest.mark.parametrize("splits", SPLITS)
@pytest.mark.parametrize("world_size", [1, 3])
def test_batches_equal_a_slow_oracle(
    datasets: dict[str, Dataset], loss: NegativeSampling, splits: str, world_size: int
) -> None:
    dataset = datasets[splits]
    train_parts = [s[:train] for s, (train, _, _) in zip(SEQUENCES, SPLITS[splits], strict=True)]
    for rank in range(world_size):
        found = train(dataset, loss, rank, world_size)
        rows = list(epoch_batches(7, 2, dataset.shard_rows, BATCH))
        assert len(found) == len(rows) == steps_per_epoch(dataset.users, BATCH)
        for step, (batch, everyone) in enumerate(zip(found, rows, strict=True)):
            mine = rank_slice(everyone, rank, world_size)
            parts = [train_parts[row] for row in mine if len(train_parts[row]) > 1]
            samples = [part[-(L + 1) :] for part in parts]
            assert batch.items.tolist() == sorted(set(batch.items.tolist())) and batch.items[0] == 0
            assert batch.lengths.tolist() == [len(sample) - 1 for sample in samples]
            assert split(batch.items[batch.inputs], batch.lengths) == [sample[:-1] for sample in samples]
            assert split(batch.items[batch.targets], batch.lengths) == [sample[1:] for sample in samples]
            assert batch.positions == len(batch.targets) and batch.positions.shape == ()
            padding = sum(L + 1 - len(sample) for sample in samples)
            sightings = Counter(item for sample in samples for item in sample)
            assert batch.sightings().tolist() == [sightings[item] for item in batch.items.tolist()]
            counts = Counter({0: padding}) + sightings
            negatives = batch.items[batch.negatives]
            if loss is BCE:
                assert not batch.shared_negatives
                for drawn, part in zip(split(negatives, batch.lengths), parts, strict=True):
                    assert not {0, *part} & set(drawn)
                # The table of negatives has one more draw per sample than there are positions.
                extra = Counter(dict(zip(batch.items.tolist(), batch.occurrences.long().tolist(), strict=True)))
                extra -= counts + Counter({0: padding}) + Counter(negatives.tolist())
                assert extra.total() == len(samples) and 0 not in extra
                assert batch.occurrences.sum() == 2 * len(samples) * (L + 1)
            else:
                assert batch.shared_negatives and len(negatives) == shared_count(loss)
                if loss is FULL:
                    assert negatives.tolist() == list(range(1, ITEMS + 1))
                if loss is IN_BATCH:
                    targets = np.array([i for row in everyone for i in train_parts[row][-(L + 1) :][1:]])
                    assert negatives[12:].tolist() == in_batch_negatives(7, 2, step, 30, targets).tolist()
                counts += Counter(negatives.tolist()) if rank == 0 and loss is not FULL else Counter()
                assert batch.occurrences.tolist() == [counts[item] for item in batch.items.tolist()]


@LOSSES
@pytest.mark.parametrize("splits", SPLITS)
@pytest.mark.parametrize("world_size", [1, 2])
def test_validation_targets_are_each_user_s_one_scored_position(
    datasets: dict[str, Dataset], loss: NegativeSampling, splits: str, world_size: int
) -> None:
    dataset, found = datasets[splits], []
    for rank in range(world_size):
        for batch in train(dataset, loss, rank, world_size, targets="valid"):
            assert batch.scored is not None
            assert batch.scored.tolist() == (batch.lengths.cumsum(0) - 1).tolist()
            assert batch.positions == len(batch.targets) == len(batch.lengths)
            contexts = split(batch.items[batch.inputs], batch.lengths)
            found += [(tuple(c), t) for c, t in zip(contexts, batch.items[batch.targets].tolist(), strict=True)]
            if loss is BCE:
                assert len(batch.negatives) == len(batch.targets)
                assert not (batch.negatives == batch.targets).any()
    places = [(s, valid) for s, (_, valid, _) in zip(SEQUENCES, SPLITS[splits], strict=True) if valid > 0]
    assert sorted(found) == sorted((tuple(s[:valid][-L:]), s[valid]) for s, valid in places)


@LOSSES
@pytest.mark.parametrize("splits", SPLITS)
@pytest.mark.parametrize("share", [1.0, 0.4])
def test_ranks_together_are_the_single_rank_batch(
    datasets: dict[str, Dataset], loss: NegativeSampling, splits: str, share: float
) -> None:
    dataset = datasets[splits]
    everyone = [train(dataset, loss, rank, 3, occurrence_share=share) for rank in range(3)]
    for whole, *parts in zip(train(dataset, loss, occurrence_share=share), *everyone, strict=True):
        assert torch.cat([part.lengths for part in parts]).equal(whole.lengths)
        for name in ("inputs", "targets", "negatives"):
            ids = [part.items[getattr(part, name)] for part in parts]
            together = ids[0] if name == "negatives" and loss is not BCE else torch.cat(ids)
            assert together.equal(whole.items[getattr(whole, name)]), name
        counts = torch.zeros(ITEMS + 1)
        for part in parts:
            counts.index_add_(0, part.items, part.occurrences)
        found, items = counts[whole.items], whole.items > 0
        assert found[items].equal(whole.occurrences[items])
        torch.testing.assert_close(found, whole.occurrences)  # a share of padding is no whole number
        assert counts.sum() == found.sum()
        assert sum(part.positions for part in parts) == whole.positions


@LOSSES
def test_a_rank_with_nothing_still_takes_every_step(dataset: Dataset, loss: NegativeSampling) -> None:
    everyone = [train(dataset, loss, rank, 20) for rank in range(20)]
    assert {len(found) for found in everyone} == {steps_per_epoch(dataset.users, BATCH)}
    empty = [found[-1] for found in everyone if not len(found[-1].lengths)]
    assert empty
    for batch in empty:
        assert batch.positions == len(batch.inputs) == len(batch.targets) == 0
        assert len(batch.negatives) == shared_count(loss)
        assert len(batch.items) >= 1


@LOSSES
def test_a_resumed_epoch_gives_the_same_batches(dataset: Dataset, loss: NegativeSampling) -> None:
    whole = train(dataset, loss, occurrence_share=0.4)
    resumed = train(dataset, loss, occurrence_share=0.4, start_step=2)
    assert len(resumed) == len(whole) - 2
    assert all(equal(a, b) for a, b in zip(whole[2:], resumed, strict=True))
    assert not equal(whole[2], train(dataset, loss, epoch=3)[2])


@LOSSES
def test_a_share_of_the_items_keeps_its_occurrences(dataset: Dataset, loss: NegativeSampling) -> None:
    pairs = zip(train(dataset, loss), train(dataset, loss, occurrence_share=0.4), strict=True)
    for step, (whole, part) in enumerate(pairs):
        hashes = [int(hash_ids(7, SAMPLED_ITEM, 2, step, item)) for item in whole.items.tolist()]
        kept = torch.tensor([value < 0.4 * 2**64 for value in hashes])
        padding = whole.items == 0
        assert part.occurrences[~padding].equal(whole.occurrences.where(kept, 0)[~padding])
        assert part.occurrences[padding].equal(whole.occurrences[padding] * 0.4) and padding.sum() == 1
        assert equal(replace(part, occurrences=whole.occurrences), whole)


def test_another_share_of_the_items_is_drawn_every_step(dataset: Dataset) -> None:
    steps = [batch for epoch in range(25) for batch in train(dataset, SHARED, epoch=epoch, occurrence_share=0.4)]
    drawn = torch.zeros(2, ITEMS + 1)
    for batch in steps:
        drawn.index_add_(1, batch.items, torch.stack([batch.occurrences > 0, torch.ones(len(batch.items))]).float())
    drawn = drawn[:, 1:]  # padding is in all of them
    # 100 steps: every item is in some samples and out of others.
    assert (drawn[0] > 0).all() and (drawn[0] < drawn[1]).all()
    assert abs(drawn[0].sum() / drawn[1].sum() - 0.4) < 0.05  # five standard deviations


@LOSSES
def test_a_global_batch_without_any_position_is_a_step_on_every_rank(loss: NegativeSampling, tmp_path: Path) -> None:
    untrained = [(n % 2, -1, len(s) - 1) for n, s in enumerate(SEQUENCES)]
    dataset = Dataset.open(write_tiny_dataset(tmp_path, SEQUENCES, ITEMS, splits=untrained))
    for rank in range(2):
        found = train(dataset, loss, rank, 2)
        assert len(found) == 4
        for batch in found:
            assert batch.positions == len(batch.lengths) == len(batch.inputs) == len(batch.targets) == 0
            assert batch.items[0] == 0 and len(batch.negatives) == shared_count(loss, positions=False)
            assert batch.occurrences.sum() == (12 if rank == 0 and loss in (SHARED, IN_BATCH) else 0)


@LOSSES
@pytest.mark.parametrize("splits", SPLITS)
def test_held_out_items_never_reach_training(
    datasets: dict[str, Dataset], loss: NegativeSampling, splits: str, tmp_path: Path
) -> None:
    dataset = datasets[splits]
    changed = [
        s[:train] + [1 + (item + 7) % ITEMS for item in s[train:]]
        for s, (train, _, _) in zip(SEQUENCES, SPLITS[splits], strict=True)
    ]
    assert sum(a != b for a, b in zip(changed, SEQUENCES, strict=True)) > 40
    other = Dataset.open(write_tiny_dataset(tmp_path, changed, ITEMS, splits=SPLITS[splits]))
    assert all(equal(a, b) for a, b in zip(train(dataset, loss), train(other, loss), strict=True))
    for before, after in zip(dataset.item_columns(0, ITEMS + 1), other.item_columns(0, ITEMS + 1), strict=True):
        assert (before == after).all()


def test_the_splits_of_these_tests_have_every_kind_of_user() -> None:
    found = {(min(train, 2), valid >= 0, test >= 0) for name in SPLITS for train, valid, test in SPLITS[name]}
    every = set(itertools.product((0, 1, 2), (True, False), (True, False)))
    assert found == every - {(0, False, False), (1, False, False)}  # a history of one event; these have three


@pytest.mark.parametrize("splits", SPLITS)
@pytest.mark.parametrize(("name", "column"), [("valid", 1), ("test", 2)])
@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_equals_a_slow_oracle(
    datasets: dict[str, Dataset], splits: str, name: Literal["valid", "test"], column: int, world_size: int
) -> None:
    ranks = [evaluation(datasets[splits], name, rank, world_size) for rank in range(world_size)]
    assert {len(found) for found in ranks} == {4}
    places: Splits = SPLITS[splits]
    users = ((s, user[column]) for s, user in zip(SEQUENCES, places, strict=True) if user[column] != -1)
    for step in zip(*ranks, strict=True):
        for batch in step:
            contexts = split(batch.items[batch.inputs], batch.lengths)
            histories = split(batch.history, batch.history_lengths)
            for target, context, history in zip(batch.targets.tolist(), contexts, histories, strict=True):
                sequence, place = next(users)
                assert target == sequence[place]
                assert history == sequence[:place]
                assert context == sequence[:place][-L:]
            assert batch.items.tolist() == sorted({0, *batch.items[batch.inputs].tolist()})
    assert next(users, None) is None


def test_a_step_in_which_nobody_has_a_target_is_still_taken(tmp_path: Path) -> None:
    splits = [(1, -1, 2 if row >= 50 else -1) for row in range(len(SEQUENCES))]
    dataset = Dataset.open(write_tiny_dataset(tmp_path, SEQUENCES, ITEMS, splits=splits))
    for rank in range(2):
        found = evaluation(dataset, "test", rank, 2)
        assert [len(batch.targets) for batch in found] == [0, 0, 0, [1, 4][rank]]
        assert found[0].items.tolist() == [0] and not len(found[0].history)


def evaluation(dataset: Dataset, name: Literal["valid", "test"], rank: int, world_size: int) -> list[EvalBatch]:
    return list(eval_batches(dataset, name, batch_size=BATCH, max_length=L, rank=rank, world_size=world_size))


def test_a_broken_shard_stops_the_caller(tmp_path: Path) -> None:
    dataset = Dataset.open(write_tiny_dataset(tmp_path, SEQUENCES, ITEMS))
    (tmp_path / "sequences/part-00002.parquet").write_bytes(b"cut short")
    with pytest.raises(UserError, match=r"part-00002\.parquet differs from the manifest"):
        train(dataset, SHARED)
