import numpy as np
import pytest

from pad_dist.data.negatives import in_batch_negatives, shared_negatives, uniform_negatives
from pad_dist.errors import UserError

N = 20
TRAIN = [[1, 2, 3, 3], [5], list(range(1, N)), [7, 8, 9, 10, 11, 12]]
SIZES = np.array([4, 1, 6, 5])
ROWS = np.array([100, 3, 57, 4])


def draw(users: list[int], seed: int = 1, epoch: int = 0, sizes: np.ndarray = SIZES) -> np.ndarray:
    return uniform_negatives(
        seed,
        epoch,
        ROWS[users],
        sizes[users],
        np.concatenate([TRAIN[u] for u in users]),
        np.array([len(TRAIN[u]) for u in users]),
        N,
    )


def test_never_a_train_item_of_the_user() -> None:
    for epoch in range(50):
        for negatives, train in zip(
            np.split(draw([0, 1, 2, 3], epoch=epoch), np.cumsum(SIZES)[:-1]), TRAIN, strict=True
        ):
            assert not set(negatives) & set(train)
            assert all(1 <= i <= N for i in negatives)
    assert set(draw([2])) == {N}  # the only item left


def test_a_user_draws_the_same_in_any_company() -> None:
    together = np.split(draw([0, 1, 2, 3]), np.cumsum(SIZES)[:-1])
    for user in range(4):
        np.testing.assert_array_equal(draw([user]), together[user])
    np.testing.assert_array_equal(draw([3, 0]), np.concatenate([together[3], together[0]]))


def test_redrawn_each_epoch_and_seed() -> None:
    many = np.array([200, 200, 200, 200])
    assert (draw([0], sizes=many) != draw([0], epoch=1, sizes=many)).mean() > 0.8
    assert (draw([0], sizes=many) != draw([0], seed=2, sizes=many)).mean() > 0.8


def test_uniform_over_the_items_outside() -> None:
    count = 34_000
    found = np.bincount(draw([0], sizes=np.full(4, count)), minlength=N + 1)
    assert found[[0, 1, 2, 3]].sum() == 0
    expected = count / 17
    assert np.abs(found[4:] - expected).max() < 6 * expected**0.5


def test_a_user_of_the_whole_catalogue_is_refused() -> None:
    with pytest.raises(UserError, match=r"row 9 has all 3 items.*sampled_softmax"):
        one = np.array([1])
        uniform_negatives(1, 0, np.array([9]), one, np.array([1, 2, 3]), 3 * one, 3)


def test_shared_negatives_are_uniform_with_replacement_and_redrawn() -> None:
    drawn = np.concatenate([shared_negatives(1, 0, step, 10, N) for step in range(2000)])
    found = np.bincount(drawn, minlength=N + 1)
    assert found[0] == 0 and len(found) == N + 1
    assert np.abs(found[1:] - 1000).max() < 6 * 1000**0.5
    assert not np.array_equal(shared_negatives(1, 0, 0, 10, N), shared_negatives(1, 0, 1, 10, N))
    assert not np.array_equal(shared_negatives(1, 0, 0, 10, N), shared_negatives(1, 1, 0, 10, N))


@pytest.mark.parametrize("count", [N, N + 1, 1000])
def test_enough_shared_negatives_are_the_full_softmax(count: int) -> None:
    assert shared_negatives(1, 0, 0, count, N).tolist() == list(range(1, N + 1))


def test_in_batch_negatives_are_uniform_over_the_targets_and_redrawn() -> None:
    targets = np.array([3, 9, 3, 5])
    drawn = np.concatenate([in_batch_negatives(1, 0, step, 10, targets) for step in range(2000)])
    found = np.bincount(drawn, minlength=N + 1)
    assert np.abs(found[[3, 5, 9]] - [10_000, 5000, 5000]).max() < 6 * 10_000**0.5
    assert found.sum() == found[[3, 5, 9]].sum()
    many = np.arange(1, 1001)
    for seed, epoch, step in [(2, 0, 0), (1, 1, 0), (1, 0, 1)]:
        drawn = in_batch_negatives(seed, epoch, step, 1000, many)
        assert (drawn != in_batch_negatives(1, 0, 0, 1000, many)).mean() > 0.9


def test_a_batch_without_targets_has_no_negatives_in_it() -> None:
    assert in_batch_negatives(1, 0, 0, 10, np.zeros(0, np.int64)).tolist() == []
