"""The text table as the model sees it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pad_dist.config import TextConfig
from pad_dist.errors import UserError
from pad_dist.sparse.text_rows import TextRows
from tests.sparse import text_start_worker
from tests.support.ranks import run_ranks
from tests.support.tiny_dataset import random_sequences, write_tiny_dataset
from tests.support.tiny_text import write_tiny_text

ITEMS, DIM = 20, 4
ERASED = (3, 11)


@pytest.fixture
def dataset(tmp_path: Path) -> tuple[str, np.ndarray]:
    url = write_tiny_dataset(tmp_path / "dataset", random_sequences(8, ITEMS), ITEMS)
    return url, write_tiny_text(url, DIM, erased=ERASED)


def lookup(url: str, text: TextConfig) -> np.ndarray:
    rows = TextRows(url, text, ITEMS, device=torch.device("cpu"), group=None)
    assert rows.dim == DIM
    return rows.lookup(torch.arange(ITEMS + 1)).numpy()


def test_rows_are_centred_and_scaled_over_the_items_that_have_a_text(dataset: tuple[str, np.ndarray]) -> None:
    seen = lookup(dataset[0], TextConfig())
    empty = [0, *ERASED]
    assert not seen[empty].any()
    present = np.delete(seen, empty, axis=0)
    np.testing.assert_allclose(present.mean(axis=0), 0, atol=1e-5)
    assert (present**2).mean() == pytest.approx(1, abs=1e-5)


def test_without_centring_rows_are_what_the_table_holds(dataset: tuple[str, np.ndarray]) -> None:
    url, table = dataset
    write_tiny_text(url, DIM, erased=ERASED, text=TextConfig(transform="none"))
    np.testing.assert_array_equal(lookup(url, TextConfig(transform="none")), table.astype(np.float32))


def test_a_catalogue_of_one_vector_is_refused(dataset: tuple[str, np.ndarray]) -> None:
    write_tiny_text(dataset[0], DIM, erased=tuple(range(2, ITEMS + 1)))
    with pytest.raises(UserError, match=r"all texts of .* have the same vector"):
        lookup(dataset[0], TextConfig())
    write_tiny_text(dataset[0], DIM, erased=tuple(range(1, ITEMS + 1)))
    with pytest.raises(UserError, match=r"all texts of .* have the same vector"):
        lookup(dataset[0], TextConfig())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_whitened_rows_have_the_identity_for_covariance(dataset: tuple[str, np.ndarray], seed: int) -> None:
    url, mixed = dataset[0], np.random.default_rng(seed).standard_normal((DIM, DIM))
    table = write_tiny_text(url, DIM, seed, erased=ERASED) @ mixed + 3
    table[[0, *ERASED]] = 0
    table = write_tiny_text(url, DIM, rows=table.astype(np.float16), erased=ERASED)
    seen = lookup(url, TextConfig(transform="whiten"))
    empty = [0, *ERASED]
    assert not seen[empty].any()
    found, given = (np.delete(rows.astype(np.float64), empty, axis=0) for rows in (seen, table))
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(np.cov(found.T, bias=True), np.eye(DIM), atol=3e-3)
    # ZCA: of all rotations of such vectors the one that is nearest to what was there, a symmetric matrix.
    values, vectors = np.linalg.eigh(np.cov(given.T, bias=True))
    zca = (given - given.mean(axis=0)) @ (vectors * values**-0.5) @ vectors.T
    np.testing.assert_allclose(found, zca, rtol=3e-3, atol=3e-3)


def test_directions_that_no_text_uses_stay_small(dataset: tuple[str, np.ndarray]) -> None:
    table = np.zeros((ITEMS + 1, DIM), np.float16)
    table[1:, :2] = np.random.default_rng(0).standard_normal((ITEMS, 2))
    write_tiny_text(dataset[0], DIM, rows=table)
    seen = lookup(dataset[0], TextConfig(transform="whiten"))[1:]
    np.testing.assert_allclose(np.cov(seen.T, bias=True), np.diag([1, 1, 0, 0]), atol=3e-3)


@pytest.mark.parametrize("transform", ["center", "whiten"])
def test_ranks_see_what_one_sees(dataset: tuple[str, np.ndarray], transform: str) -> None:
    one = lookup(dataset[0], TextConfig.model_validate({"transform": transform}))
    for two in run_ranks(text_start_worker.looked_up, 2, dataset[0], transform, ITEMS):
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-6)
