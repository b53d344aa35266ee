import itertools
import tracemalloc

import numpy as np
import pytest
import torch

from pad_dist.sparse import initial
from pad_dist.sparse.initial import BLOCK_ROWS, fill_normal, normal_of_ids

ROWS, DIM = 2 * BLOCK_ROWS + 700, 6


def fill(first_row: int, rows: int, first_column: int = 0, columns: int = DIM, *, seed: int = 5, table: str = "id"):
    shard = torch.full((rows, columns), torch.nan)
    fill_normal(shard, table=table, dim=DIM, first_row=first_row, first_column=first_column, std=0.5, seed=seed)
    return shard


@pytest.mark.parametrize("cuts", [[], [1], [BLOCK_ROWS], [100, BLOCK_ROWS + 1, ROWS - 1]])
def test_row_wise_shards_hold_the_rows_of_the_whole_table(cuts: list[int]) -> None:
    bounds = [0, *cuts, ROWS]
    parts = [fill(start, stop - start) for start, stop in itertools.pairwise(bounds)]
    assert torch.equal(torch.cat(parts), fill(0, ROWS))


def test_column_wise_shards_hold_the_columns_of_the_whole_table() -> None:
    whole = fill(0, ROWS)
    assert torch.equal(torch.cat([fill(0, ROWS, 0, 2), fill(0, ROWS, 2, 4)], dim=1), whole)


def test_wide_tables_are_drawn_in_blocks_of_fewer_rows_and_cut_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initial, "BLOCK_VALUES", 100 * DIM)
    whole = fill(0, 350)
    assert len(torch.unique(whole)) > 0.99 * whole.numel()
    assert torch.equal(torch.cat([fill(0, 130), fill(130, 220)]), whole)
    assert torch.equal(torch.cat([fill(0, 350, 0, 2), fill(0, 350, 2, 4)], dim=1), whole)


def test_a_row_is_a_function_of_seed_table_and_row_not_of_how_many_there_are() -> None:
    assert torch.equal(fill(0, ROWS)[:900], fill(0, 900))


def test_no_temporary_exceeds_64_mib() -> None:
    dim = 8192
    shard = torch.empty(3000, dim)
    assert len(shard) > initial.block_rows(dim)  # more than one block
    tracemalloc.start()
    fill_normal(shard, table="id", dim=dim, first_row=5, first_column=0, std=1.0, seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 2**20 < peak < 64 * 2**20 + 2**16


def test_half_precision_rounds_once() -> None:
    half = torch.empty(ROWS, DIM, dtype=torch.float16)
    fill_normal(half, table="id", dim=DIM, first_row=0, first_column=0, std=0.5, seed=5)
    assert torch.equal(half, fill(0, ROWS).half())


def test_values_are_normal_with_the_asked_deviation_and_differ_by_seed_and_table() -> None:
    values = fill(0, ROWS)
    assert abs(values.mean().item()) < 0.01
    assert values.std().item() == pytest.approx(0.5, rel=0.02)
    assert len(np.unique(values.numpy())) > 0.99 * values.numel()
    assert not torch.equal(values, fill(0, ROWS, seed=6))
    assert not torch.equal(values, fill(0, ROWS, table="aligned"))


def test_vectors_of_ids_are_normal_and_a_function_of_the_id_and_the_column() -> None:
    ids = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 4000)

    def draw(ids: np.ndarray, first: int = 0, columns: int = 7, seed: int = 5, table: str = "id") -> np.ndarray:
        return normal_of_ids(ids, table=table, first_column=first, columns=columns, std=0.5, seed=seed).numpy()

    values = draw(ids)
    assert values.shape == (4000, 7)
    np.testing.assert_array_equal(draw(ids[[7, 3]]), values[[7, 3]])
    for first, columns in ((0, 1), (1, 2), (3, 4), (6, 1)):
        np.testing.assert_array_equal(draw(ids, first, columns), values[:, first : first + columns])
    assert len(np.unique(values)) > 0.99 * values.size
    # Deviations from a normal distribution, correlations of columns: a few standard errors at most.
    within = [(abs(values) < 0.5 * width).mean() for width in (1, 2, 3)]
    np.testing.assert_allclose(within, [0.6827, 0.9545, 0.9973], atol=0.006)
    assert abs(values.mean()) < 0.01 and abs(np.corrcoef(values.T) - np.eye(7)).max() < 0.06
    for other in (draw(ids, seed=6), draw(ids, table="aligned")):
        assert (values == other).mean() < 0.001
