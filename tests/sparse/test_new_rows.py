"""Tables that grow by rows: the old ones as they were, the new ones from items with like texts."""

from pathlib import Path

import numpy as np
import pytest

from pad_dist.sparse.row_shards import row_range
from tests.sparse import new_rows_worker as worker
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("saved_by", "loaded_by", "variant"),
    [
        (2, 1, "torchrec row_wise"),
        (1, 2, "torchrec row_wise"),
        (1, 2, "torchrec column_wise"),
        (1, 1, "torch"),
    ],
)
def test_a_grown_table_is_the_same_on_any_ranks(tmp_path: Path, saved_by: int, loaded_by: int, variant: str) -> None:
    run_ranks(worker.save, saved_by, str(tmp_path), variant)
    expected = worker.expected()
    for tables in run_ranks(worker.grown, loaded_by, str(tmp_path), variant):
        for name, rows in tables.items():
            known = worker.KNOWN + 1
            np.testing.assert_array_equal(rows[:known], expected[name][:known], err_msg=name)
            np.testing.assert_allclose(rows[known:], expected[name][known:], rtol=1e-6, atol=1e-6, err_msg=name)


def test_a_rank_without_known_rows_and_few_items_in_use_are_no_trouble(tmp_path: Path) -> None:
    # Of four ranks the last holds new rows alone.
    assert row_range(worker.ROWS, 3, 4)[0] > worker.KNOWN
    run_ranks(worker.save, 1, str(tmp_path), "torchrec row_wise")
    expected = worker.expected(in_use=7)
    (*_, tables) = run_ranks(worker.grown, 4, str(tmp_path), "torchrec row_wise", 7)
    for name, rows in tables.items():
        np.testing.assert_allclose(rows, expected[name], rtol=1e-6, atol=1e-6, err_msg=name)
