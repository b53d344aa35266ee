"""MK-MMD against the golden arrays, a naive oracle over single occurrences, and itself on two ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import pad_dist
from pad_dist.objectives import mk_mmd as module
from pad_dist.objectives.mk_mmd import mk_mmd

GOLDEN = Path(__file__).parents[1] / "golden"
Result = tuple[Tensor, Tensor, Tensor]


def oracle(text: Tensor, anchor: Tensor, weights: Tensor) -> Tensor:
    """METHOD's formula, written out over every occurrence with n x n x d differences."""
    t, e = text.repeat_interleave(weights.long(), 0), anchor.repeat_interleave(weights.long(), 0)
    n = len(t)
    pooled = torch.cat([t, e])
    distance = (pooled[:, None] - pooled[None]).square().sum(2)
    m = distance.detach().mean()
    kernel = sum(torch.exp(-distance / (2 * 2.0**a * m)) for a in range(-3, 2))
    assert isinstance(kernel, Tensor)
    within = kernel[:n, :n] + kernel[n:, n:]
    off_diagonal = within.sum() - within.diagonal().sum()
    return off_diagonal / (n * (n - 1)) - 2 / n**2 * kernel[:n, n:].sum() + 2 / (n - 1)


def solve(loss: Callable[[Tensor, Tensor, Tensor], Tensor], text: Tensor, anchor: Tensor, weights: Tensor) -> Result:
    text, anchor = text.clone().requires_grad_(), anchor.clone().requires_grad_()
    value = loss(text, anchor, weights)
    value.backward()
    assert text.grad is not None and anchor.grad is not None
    return value.detach(), text.grad, anchor.grad


def make(seed: int, items: int, dim: int, most: int) -> Result:
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(items, dim, dtype=torch.float64, generator=generator) + 3
    anchor = torch.randn(items, dim, dtype=torch.float64, generator=generator) * 0.5
    weights = torch.randint(0, most + 1, (items,), generator=generator).double()
    weights[0] = most
    return text, anchor, weights


@pytest.mark.parametrize("name", ["mk_mmd_small", "mk_mmd_mid"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden(name: str, dtype: torch.dtype) -> None:
    arrays = {
        key: torch.from_numpy(np.asarray(value)).to(dtype) for key, value in np.load(GOLDEN / f"{name}.npz").items()
    }
    ours = solve(mk_mmd, arrays["z_text"], arrays["z_id"], torch.ones(len(arrays["z_id"])))
    for value, key in zip(ours, ("loss", "grad_text", "grad_id"), strict=True):
        assert (value - arrays[key]).abs().max() < 1e-5 * arrays[key].abs().max(), key


@pytest.mark.parametrize(("items", "dim", "most"), [(2, 1, 1), (1, 3, 2), (9, 4, 3), (40, 16, 7)])
@pytest.mark.parametrize("seed", range(3))
def test_weights_equal_occurrences(seed: int, items: int, dim: int, most: int) -> None:
    samples = make(seed, items, dim, most)
    if samples[2].sum() < 2:
        samples[2][:] = 1
    for ours, naive in zip(solve(mk_mmd, *samples), solve(oracle, *samples), strict=True):
        torch.testing.assert_close(ours, naive, rtol=1e-9, atol=1e-12)


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


@pytest.mark.parametrize("total", [0, 1])
def test_fewer_than_two_samples_give_zero(total: int) -> None:
    text, anchor, _ = make(8, 3, 4, 1)
    weights = torch.tensor([float(total), 0.0, 0.0])
    assert all(not value.any() for value in solve(mk_mmd, text, anchor, weights))  # NaN would be true


def test_equal_vectors_give_no_nan() -> None:
    text = torch.full((4, 3), 0.7)
    assert all(value.isfinite().all() for value in solve(mk_mmd, text, text, torch.ones(4)))


def test_two_ranks_share_the_loss_of_one(tmp_path: Path) -> None:
    """Uneven slices, an item on both ranks, a rank with nothing, and no samples at all."""
    full = make(9, 21, 5, 4)
    repeated = tuple(torch.cat([x, x[:2]]) for x in full)
    cases = [(full, 8), (repeated, 21), (full, 21), (tuple(x[:0] for x in full), 0)]
    for rank in range(2):
        slices = [tuple(x[:at] if rank == 0 else x[at:] for x in samples) for samples, at in cases]
        torch.save(slices, tmp_path / f"in{rank}.pt")
    root = str(Path(pad_dist.__file__).parents[1])
    worker = str(Path(__file__).with_name("mk_mmd_worker.py"))
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen([sys.executable, worker, str(rank), "2", str(tmp_path)], env=environment) for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=60) for process in ranks] == [0, 0]
    finally:
        for process in ranks:
            process.kill()
    halves = [torch.load(tmp_path / f"out{rank}.pt") for rank in range(2)]
    for (samples, _), first, second in zip(cases, *halves, strict=True):
        value, text, anchor = solve(mk_mmd, *samples)
        torch.testing.assert_close(first[0] + second[0], value, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(torch.cat([first[1], second[1]]), text, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(torch.cat([first[2], second[2]]), anchor, rtol=1e-9, atol=1e-12)
