"""PCA and whitening from moments, against the whole sample at once."""

from pathlib import Path

import numpy as np
import pytest

from pad_dist.config import ReduceConfig
from pad_dist.errors import UserError
from spark_jobs.text_reduction import Sums, fit, in_sample, load_reduction, save_reduction, sums_of

RNG = np.random.default_rng(0)
ROWS = (RNG.standard_normal((400, 6)) * [3, 2, 1, 0.5, 0.2, 0.1] + 5) @ np.linalg.qr(RNG.standard_normal((6, 6)))[0]
ROWS = (ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)).astype(np.float32)


def sums(rows: np.ndarray = ROWS) -> Sums:
    return sums_of(np.array_split(rows, 7), rows.shape[1])


def test_pca_keeps_the_directions_of_most_variance_at_mean_squared_length_one() -> None:
    reduced = fit(sums(), ReduceConfig(kind="pca", dim=3))(ROWS)
    left, values, _ = np.linalg.svd(ROWS - ROWS.mean(axis=0), full_matrices=False)
    expected = left[:, :3] * values[:3]
    expected /= np.sqrt((expected**2).sum(axis=1).mean())
    np.testing.assert_allclose(reduced * np.sign((reduced * expected).sum(axis=0)), expected, atol=1e-4)
    assert (reduced**2).sum(axis=1).mean() == pytest.approx(1, abs=1e-4)


def test_whitening_makes_all_directions_equal_and_uncorrelated() -> None:
    reduced = fit(sums(), ReduceConfig(kind="whiten", dim=4))(ROWS).astype(np.float64)
    np.testing.assert_allclose(reduced.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(reduced.T @ reduced / len(ROWS), np.eye(4) / 4, atol=1e-4)


def test_rows_without_a_text_stay_zeros() -> None:
    reduced = fit(sums(), ReduceConfig(kind="pca", dim=2))(np.concatenate([ROWS[:2], np.zeros((1, 6), np.float32)]))
    assert reduced.any(axis=1).tolist() == [True, True, False]


def test_more_dimensions_than_the_sample_spans_are_refused() -> None:
    flat = ROWS.copy()
    flat[:, 4:] = 0
    with pytest.raises(UserError, match=r"text\.reduce\.dim=5 but 400 sampled vectors span only 4 directions"):
        fit(sums(flat), ReduceConfig(kind="whiten", dim=5))
    with pytest.raises(UserError, match="span only 0 directions"):
        fit(sums(ROWS[:0]), ReduceConfig(kind="pca", dim=1))


def test_the_sample_depends_on_the_text_s_hash_alone() -> None:
    hashes = [f"{value:064x}" for value in RNG.integers(0, 2**62, 4000) << 1]
    hashes = [key[::-1] for key in hashes]
    drawn = in_sample(hashes, 0.25)
    assert 850 < drawn.sum() < 1150
    np.testing.assert_array_equal(in_sample(hashes[::-1], 0.25)[::-1], drawn)
    assert in_sample(hashes, 1.0).all() and in_sample(hashes, 3.0).all()


def test_a_saved_reduction_is_read_as_it_was_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    url = str(tmp_path / "text" / "reduction.safetensors")
    reduction = fit(sums(), ReduceConfig(kind="pca", dim=2))
    save_reduction(url, reduction)
    np.testing.assert_array_equal(load_reduction(url)(ROWS), reduction(ROWS))
    Path(url).write_bytes(Path(url).read_bytes()[:-9])
    with pytest.raises(UserError, match="is damaged"):
        load_reduction(url)
