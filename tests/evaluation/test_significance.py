"""The paired bootstrap against closed forms, and against what it promises of many samples."""

import math

import numpy as np
import pytest

from pad_dist.errors import UserError
from pad_dist.evaluation.significance import RESAMPLES, _bootstrap_means, paired_bootstrap


def normal_p(z: float) -> float:
    return math.erfc(abs(z) / math.sqrt(2))


@pytest.mark.parametrize("seed", range(5))
def test_interval_and_p_are_those_of_the_normal_limit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    b = rng.random(4000) < 0.10
    a = np.where(rng.random(4000) < 0.9, b, rng.random(4000) < 0.14)
    d = a.astype(float) - b
    se = d.std() / math.sqrt(len(d))
    comparison = paired_bootstrap(a, b, resamples=40_000, seed=seed)
    assert comparison.difference == pytest.approx(d.mean()) and comparison.users == 4000
    assert comparison.relative == pytest.approx(d.mean() / b.mean())
    assert comparison.low == pytest.approx(d.mean() - 1.96 * se, abs=0.08 * se)
    assert comparison.high == pytest.approx(d.mean() + 1.96 * se, abs=0.08 * se)
    # Differences are whole numbers of users: half of one is the continuity correction.
    assert comparison.p == pytest.approx(normal_p((abs(d.mean()) - 0.5 / len(d)) / se), abs=0.01)


@pytest.mark.parametrize("seed", range(3))
def test_means_of_distinct_values_are_those_of_drawn_users(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.choice([0.0, 0.0, 0.3, 1.0, -0.5], 60)
    drawn = values[rng.integers(0, 60, (20_000, 60))].mean(axis=1)
    means = _bootstrap_means(values, 20_000, rng)
    levels = [0.01, 0.25, 0.5, 0.75, 0.99]
    assert np.quantile(means, levels) == pytest.approx(np.quantile(drawn, levels), abs=0.02)
    assert means.std() == pytest.approx(drawn.std(), rel=0.03)


def test_of_equal_methods_one_in_twenty_looks_better_by_chance() -> None:
    rng = np.random.default_rng(1)
    samples = [rng.normal(size=(2, 300)) for _ in range(400)]
    ps = np.array([paired_bootstrap(a, b, resamples=500, seed=i).p for i, (a, b) in enumerate(samples)])
    assert 0.025 < (ps < 0.05).mean() < 0.08
    assert np.quantile(ps, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.08)


def test_seeds_are_averaged_first_and_any_sign_counts() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.random((3, 500)) < 0.3, rng.random((2, 500)) < 0.2
    comparison = paired_bootstrap(a, b)
    assert comparison == paired_bootstrap(a.mean(axis=0), b.mean(axis=0))
    back = paired_bootstrap(b, a)
    assert back.difference == -comparison.difference
    assert back.p == pytest.approx(comparison.p, abs=0.01)
    assert (back.low, back.high) == pytest.approx((-comparison.high, -comparison.low), abs=0.003)


def test_the_same_seed_gives_the_same_and_memory_is_bounded_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    a, b = rng.random(200), rng.random(200)
    whole = paired_bootstrap(a, b, seed=4)
    monkeypatch.setattr("pad_dist.evaluation.significance._DRAWN", 1000)
    assert paired_bootstrap(a, b, seed=4) == whole != paired_bootstrap(a, b, seed=5)


def test_equal_methods_and_a_base_of_zero() -> None:
    same = paired_bootstrap([0, 1, 0, 1], [0, 1, 0, 1])
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)
    clear = paired_bootstrap(np.ones(50), np.zeros(50))
    assert clear.relative is None and clear.p == 1 / (RESAMPLES + 1)


def test_other_users_are_refused() -> None:
    with pytest.raises(UserError, match="3 users cannot be paired with 2"):
        paired_bootstrap([0, 1, 0], [0, 1])
    with pytest.raises(UserError, match="0 users"):
        paired_bootstrap([], [])
