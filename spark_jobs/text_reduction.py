"""Fewer dimensions for text vectors: PCA or whitening, fitted on a sample and stored with the table.

    <root>/text/reduction-<digest of the recipe>.safetensors: mean [dim], components [dim, reduced dim]

A reduced row is (x - mean) @ components. The components are scaled so that rows have
mean 0 and mean squared length 1 over the sample, as unit vectors have: float16 and int8
lose as little as on those. PCA keeps the spread of each direction, whitening makes all
equal. Later versions of a dataset use the file unchanged: vectors of known texts stay,
and new items get vectors of the same space.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pad_dist import storage
from pad_dist.config import ReduceConfig
from pad_dist.errors import UserError

_LEAST_SHARE = 1e-6
"""Share of the largest variance; smaller variances are rounding errors of float16 vectors."""


@dataclass(frozen=True)
class Sums:
    """Moments of sampled rows: their number, sum [dim] and sum of x x^T [dim, dim], float64."""

    rows: int
    total: NDArray[np.float64]
    products: NDArray[np.float64]


@dataclass(frozen=True)
class Reduction:
    """mean [dim] and components [dim, reduced dim], float32."""

    mean: NDArray[np.float32]
    components: NDArray[np.float32]

    def __call__(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """rows [n, dim] -> [n, reduced dim]; rows of zeros (no text) stay zeros."""
        reduced: NDArray[np.float32] = np.matmul(rows - self.mean, self.components)
        reduced[~rows.any(axis=1)] = 0
        return reduced


def in_sample(hashes: list[str], share: float) -> NDArray[np.bool_]:
    """Whether each text is drawn, by its hash: the same in every run and partition."""
    return np.array([int(key[:13], 16) < share * 16**13 for key in hashes], bool)


def sums_of(blocks: Iterable[NDArray[np.floating]], dim: int) -> Sums:
    """Moments of rows [n, dim], block after block."""
    rows, total, products = 0, np.zeros(dim), np.zeros((dim, dim))
    for block in blocks:
        x = np.asarray(block, np.float64)
        rows += len(x)
        total += x.sum(axis=0)
        products += x.T @ x
    return Sums(rows, total, products)


def fit(sums: Sums, config: ReduceConfig) -> Reduction:
    """Fit a reduction to the moments of a sample.

    Raises:
        UserError: the sample spans fewer than `config.dim` directions.
    """
    dim = config.dim or 0
    rows = max(sums.rows, 1)
    mean = sums.total / rows
    values, vectors = np.linalg.eigh(sums.products / rows - np.outer(mean, mean))
    values, vectors = values[::-1], vectors[:, ::-1]
    spanned = int((values > _LEAST_SHARE * values[0]).sum()) if values[0] > _LEAST_SHARE else 0
    if dim > spanned:
        raise UserError(
            f"text.reduce.dim={dim} but {sums.rows} sampled vectors span only {spanned} directions: "
            "set a smaller dim or a larger text.reduce.sample_rows"
        )
    values, vectors = values[:dim], vectors[:, :dim]
    # An eigenvector's sign is arbitrary: its largest component is made positive.
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(dim)])
    scale = (dim * values) ** -0.5 if config.kind == "whiten" else np.full(dim, values.sum() ** -0.5)
    return Reduction(mean.astype(np.float32), (vectors * scale).astype(np.float32))


def save_reduction(url: str, reduction: Reduction) -> None:
    """Publish the file."""
    storage.write_bytes(url, save({"mean": reduction.mean, "components": reduction.components}))


def load_reduction(url: str) -> Reduction:
    """Read the file.

    Raises:
        UserError: missing or damaged.
    """
    try:
        return Reduction(**load(storage.read_bytes(url)))
    except (SafetensorError, TypeError) as error:
        raise UserError(f"{url} is damaged, bring it back or delete it to fit anew: {error}") from None
