"""MK-MMD against the golden arrays, and every kernel against a naive oracle over single occurrences."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pad_dist.config import KernelName
from pad_dist.objectives.alignments import mk_mmd as module
from pad_dist.objectives.alignments.mk_mmd import mk_mmd
from tests.objectives.alignments.alignment_worker import KERNELS, make, solve

GOLDEN = Path(__file__).parents[2] / "golden"
EVERY_KERNEL = pytest.mark.parametrize("kernel", KERNELS)


def oracle(text: Tensor, anchor: Tensor, weights: Tensor, kernel: KernelName) -> Tensor:
    """The formula of docs/method.md, "MK-MMD", written out over every occurrence with n x n x d differences."""
    t, e = text.repeat_interleave(weights.long(), 0), anchor.repeat_interleave(weights.long(), 0)
    n = len(t)
    values = pairs(torch.cat([t, e]), kernel)
    within = values[:n, :n] + values[n:, n:]
    off_diagonal = within.sum() - within.diagonal().sum()
    return off_diagonal / (n * (n - 1)) - 2 / n**2 * values[:n, n:].sum() + 2 / (n - 1)


def pairs(pooled: Tensor, kernel: KernelName) -> Tensor:
    """The kernel of all pairs."""
    distance = (pooled[:, None] - pooled[None]).square().sum(2)
    m = distance.detach().mean()
    match kernel:
        case "gaussian_mixture":
            return torch.stack([torch.exp(-distance / (2 * 2.0**a * m)) for a in range(-3, 2)]).sum(0)
        case "gaussian":
            return torch.exp(-distance / (2 * m))
        case "laplace":
            apart = distance > 0  # where it is not, autograd knows no slope of the root
            return torch.where(apart, torch.exp(-(torch.where(apart, distance, 1) / m).sqrt()), 1)
        case "linear":
            return pooled @ pooled.T
        case "cosine":
            return F.cosine_similarity(pooled[:, None], pooled[None], dim=2)


@pytest.mark.parametrize("name", ["mk_mmd_small", "mk_mmd_mid"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden(name: str, dtype: torch.dtype) -> None:
    arrays = {
        key: torch.from_numpy(np.asarray(value)).to(dtype) for key, value in np.load(GOLDEN / f"{name}.npz").items()
    }
    ours = solve(mk_mmd, arrays["z_text"], arrays["z_id"], torch.ones(len(arrays["z_id"])))
    for value, key in zip(ours, ("loss", "grad_text", "grad_id"), strict=True):
        assert (value - arrays[key]).abs().max() < 1e-5 * arrays[key].abs().max(), key


@EVERY_KERNEL
@pytest.mark.parametrize(("items", "dim", "most"), [(2, 1, 1), (1, 3, 2), (9, 4, 3), (40, 16, 7)])
@pytest.mark.parametrize("seed", range(3))
def test_weights_equal_occurrences(seed: int, items: int, dim: int, most: int, kernel: KernelName) -> None:
    samples = make(seed, items, dim, most)
    if samples[2].sum() < 2:
        samples[2][:] = 1
    ours, naive = (solve(partial(loss, kernel=kernel), *samples) for loss in (mk_mmd, oracle))
    for found, expected in zip(ours, naive, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = make(5, 37, 6, 4)
    whole = solve(mk_mmd, *samples)
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 3 * 2 * 37)
    for ours, expected in zip(solve(mk_mmd, *samples), whole, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


def test_gradient_scales_with_the_upstream_one() -> None:
    samples = make(6, 8, 3, 2)
    _, once, _ = solve(mk_mmd, *samples)
    _, thrice, _ = solve(lambda *s: 3 * mk_mmd(*s), *samples)
    torch.testing.assert_close(thrice, 3 * once)


def test_bf16_vectors_are_computed_in_fp32() -> None:
    text, anchor, weights = make(7, 30, 8, 2)
    text, anchor = text.bfloat16(), anchor.bfloat16()
    value, gradient, _ = solve(mk_mmd, text, anchor, weights)
    expected, _, _ = solve(mk_mmd, text.float(), anchor.float(), weights)
    assert value.dtype == torch.float32 and gradient.dtype == torch.bfloat16
    torch.testing.assert_close(value, expected.float())


@EVERY_KERNEL
@pytest.mark.parametrize("total", [0, 1])
def test_fewer_than_two_samples_give_zero(total: int, kernel: KernelName) -> None:
    text, anchor, _ = make(8, 3, 4, 1)
    weights = torch.tensor([float(total), 0.0, 0.0])
    assert all(not value.any() for value in solve(partial(mk_mmd, kernel=kernel), text, anchor, weights))  # NaN is true


@EVERY_KERNEL
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_equal_vectors_give_no_nan(value: float, kernel: KernelName) -> None:
    text = torch.full((4, 3), value)
    found = solve(partial(mk_mmd, kernel=kernel), text, text, torch.ones(4))
    assert all(part.abs().max() < 2 for part in found)  # false for NaN


@pytest.mark.parametrize("kernel", ["laplace", "linear", "cosine"])
def test_in_fp32_other_kernels_lose_no_more_than_rounding(kernel: KernelName) -> None:
    text, anchor, weights = make(10, 60, 32, 3)
    exact = solve(partial(mk_mmd, kernel=kernel), text, anchor, weights)
    for found, expected in zip(
        solve(partial(mk_mmd, kernel=kernel), text.float(), anchor.float(), weights), exact, strict=True
    ):
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
