"""First rows from texts against NumPy's singular vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pad_dist.errors import UserError
from tests.sparse import text_start_worker as worker
from tests.support.ranks import run_ranks
from tests.support.tiny_dataset import random_sequences, write_tiny_dataset
from tests.support.tiny_text import write_tiny_text

pytestmark = pytest.mark.slow

ITEMS, TEXT_DIM, DIM, STD = 50, 12, 8, 0.05
ERASED = (3, 11)
EMPTY = [0, *ERASED]


def write(folder: Path, seed: int) -> tuple[str, np.ndarray]:
    url = write_tiny_dataset(folder / f"dataset-{seed}", random_sequences(8, ITEMS), ITEMS)
    # Variances that differ, so that the directions are certain.
    rows = np.random.default_rng(seed).standard_normal((ITEMS + 1, TEXT_DIM)) * 1.3 ** np.arange(TEXT_DIM) + 2
    rows[EMPTY] = 0
    return url, write_tiny_text(url, TEXT_DIM, rows=rows.astype(np.float16), erased=ERASED)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rows_are_the_principal_components_of_the_texts(tmp_path: Path, seed: int) -> None:
    url, table = write(tmp_path, seed)
    found = worker.started(url, ITEMS, DIM, STD, {"backend": "torch"})
    np.testing.assert_array_equal(found["after"][EMPTY], found["before"][EMPTY])
    given = np.delete(table.astype(np.float64), EMPTY, axis=0)
    given -= given.mean(axis=0)
    directions = np.linalg.svd(given, full_matrices=False)[2][:DIM].T
    directions *= np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(DIM)])
    expected = given @ directions
    expected *= STD / np.sqrt((expected**2).mean())
    np.testing.assert_allclose(np.delete(found["after"], EMPTY, axis=0), expected, rtol=1e-4, atol=1e-6)


def test_a_catalogue_of_one_vector_starts_nothing(tmp_path: Path) -> None:
    url, _ = write(tmp_path, 0)
    write_tiny_text(url, TEXT_DIM, erased=tuple(range(2, ITEMS + 1)))
    with pytest.raises(UserError, match=r"all texts of .* have the same vector"):
        worker.started(url, ITEMS, DIM, STD, {"backend": "torch"})


@pytest.mark.parametrize(
    "settings", [{"sharding": "row_wise"}, {"sharding": "table_wise"}, {"sharding": "grid", "optimizer": "adagrad"}]
)
def test_any_sharding_starts_alike(tmp_path: Path, settings: dict[str, str]) -> None:
    url, _ = write(tmp_path, 4)
    expected = worker.started(url, ITEMS, DIM, STD, {"backend": "torch"})
    for found in run_ranks(worker.started, 2, url, ITEMS, DIM, STD, settings):
        for name, rows in expected.items():
            np.testing.assert_allclose(found[name], rows, rtol=1e-5, atol=1e-7, err_msg=name)
