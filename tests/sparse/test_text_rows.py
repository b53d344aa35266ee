"""The text table as the model sees it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pad_dist.config import TextConfig
from pad_dist.errors import UserError
from pad_dist.sparse.text_rows import TextRows
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
