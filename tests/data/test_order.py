import numpy as np
import pytest

from pad_dist.data.order import epoch_batches, rank_slice, steps_per_epoch

SHARDS = (40, 0, 7, 55, 31, 64)
USERS = sum(SHARDS)


def batches(**changes: object) -> list[list[int]]:
    settings = {"seed": 7, "epoch": 0, "shard_rows": SHARDS, "batch_size": 16, "block_rows": 70} | changes
    return [rows.tolist() for rows in epoch_batches(**settings)]  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_size", [1, 16, 100, 1000])
@pytest.mark.parametrize("block_rows", [1, 70, 10_000])
def test_every_row_once_and_only_the_last_batch_is_smaller(batch_size: int, block_rows: int) -> None:
    found = batches(batch_size=batch_size, block_rows=block_rows)
    assert sorted(row for rows in found for row in rows) == list(range(USERS))
    assert len(found) == steps_per_epoch(USERS, batch_size)
    assert all(len(rows) == batch_size for rows in found[:-1])


@pytest.mark.parametrize("world_size", [1, 2, 3, 20])
def test_rank_slices_join_to_the_global_batch(world_size: int) -> None:
    for rows in epoch_batches(7, 0, SHARDS, 16, block_rows=70):
        slices = [rank_slice(rows, rank, world_size) for rank in range(world_size)]
        np.testing.assert_array_equal(np.concatenate(slices), rows)
        assert max(map(len, slices)) - min(map(len, slices)) <= 1


def test_order_changes_with_epoch_and_seed_and_is_mixed() -> None:
    first = batches()
    assert batches() == first
    assert batches(epoch=1) != first
    assert batches(seed=8) != first
    assert batches(shard_rows=[64], epoch=1) != batches(shard_rows=[64])  # inside a shard too
    # With everything in one block, an early batch reaches into every non-empty shard.
    shard = np.searchsorted(np.cumsum(SHARDS), batches(block_rows=10_000, batch_size=64)[0], side="right")
    assert set(shard) == {0, 2, 3, 4, 5}


@pytest.mark.parametrize("start_step", [0, 1, 5, 12, 13])
def test_a_resumed_epoch_is_the_rest_of_it(start_step: int) -> None:
    assert batches(start_step=start_step) == batches()[start_step:]


def test_a_batch_touches_at_most_two_blocks_of_shards() -> None:
    owner = np.repeat(np.arange(len(SHARDS)), SHARDS)
    touched = [set(owner[rows]) for rows in batches()]
    # block_rows = 70 holds at most 40 + 7 (+ 0) or one large shard: 4 shards in two neighbouring blocks.
    assert max(map(len, touched)) <= 4 < len(set(owner))


def test_a_rank_reads_few_shards_of_a_batch() -> None:
    shards = [500] * 8
    owner = np.repeat(np.arange(8), shards)
    for rows in epoch_batches(7, 0, shards, 400):
        touched = [len(set(owner[rank_slice(rows, rank, 4)])) for rank in range(4)]
        assert len(set(owner[rows])) == 8 and max(touched) <= 4
