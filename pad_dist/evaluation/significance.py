"""Paired bootstrap over users: whether one method is better than another on the same users.

Source: Efron, Tibshirani, An Introduction to the Bootstrap, 1993, chapters 13 and 16.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from pad_dist.errors import UserError

RESAMPLES = 10_000
_DRAWN = 1 << 22
"""Counts that are drawn at a time: bounds the memory."""


@dataclass(frozen=True)
class Paired:
    """Method a minus method b, as means over users.

    Attributes:
        users: how many were compared.
        difference: mean of a minus mean of b.
        relative: difference as a share of the mean of b; None where that is 0.
        low, high: 95 % percentile interval of the difference.
        p: two-sided: how often the mean of as many users, drawn from differences whose mean is moved to 0, is at least
            as far from 0 as `difference`; never below 1 / (resamples + 1).
    """

    users: int
    difference: float
    relative: float | None
    low: float
    high: float
    p: float


def paired_bootstrap(a: ArrayLike, b: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Paired:
    """Compare two methods on the same users; users are the unit.

    Args:
        a, b: [users] or [seeds, users] values of a metric, the users in the same order; several seeds of a method,
            of which each may have another number, are averaged per user first.

    Raises:
        UserError: other users in a than in b, or none.
    """
    first, second = _per_user(a), _per_user(b)
    if len(first) != len(second) or not len(first):
        raise UserError(f"{len(first)} users cannot be paired with {len(second)}: evaluate both on the same dataset")
    differences = first - second
    difference, base = float(differences.mean()), float(second.mean())
    means = _bootstrap_means(differences, resamples, np.random.default_rng(seed))
    low, high = np.quantile(means, (0.025, 0.975)).tolist()
    # Rounding must not turn an equal distance into a smaller one.
    extreme = int((np.abs(means - difference) >= abs(difference) * (1 - 1e-9)).sum())
    relative = difference / base if base else None
    return Paired(len(first), difference, relative, low, high, (extreme + 1) / (resamples + 1))


def mean_interval(values: ArrayLike) -> tuple[float, float] | None:
    """95 % interval of the mean that a few values are drawn around (Student's t); None for fewer than two.

    >>> low, high = mean_interval([0.1, 0.2, 0.3])
    >>> round(low, 4), round(high, 4)
    (-0.0484, 0.4484)
    """
    array = np.asarray(values, np.float64)
    if len(array) < 2:
        return None
    mean, half = array.mean(), stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array))
    return float(mean - half), float(mean + half)


def _per_user(values: ArrayLike) -> NDArray[np.float64]:
    """[users] means over seeds."""
    array = np.atleast_2d(np.asarray(values, np.float64))
    return np.asarray(array.mean(axis=0))


def _bootstrap_means(values: NDArray[np.float64], resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """[resamples] means of as many values, drawn from them with replacement.

    Metrics have few distinct values: how often each is drawn is multinomial, which takes far less than to draw users.
    """
    # Values that differ by rounding alone are one.
    distinct, counts = np.unique(values.round(12), return_counts=True)
    means = np.empty(resamples)
    size = max(1, _DRAWN // len(distinct))
    for start in range(0, resamples, size):
        part = means[start : start + size]
        part[:] = rng.multinomial(len(values), counts / len(values), size=len(part)) @ distinct / len(values)
    return means
