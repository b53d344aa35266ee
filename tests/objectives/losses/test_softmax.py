"""Softmax losses against torch's own, one position at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pad_dist.objectives.losses.softmax import softmax_sum
from tests.objectives.problems import SHAPES, check, make_batch, make_vectors, problem, shared_batch


def test_sampled_softmax_is_cross_entropy_without_accidental_hits() -> None:
    users, items = make_vectors(3)
    batch = make_batch([1, 2, 5], [4, 2, 0, 2], shared=True)  # the second target is drawn twice
    expected = torch.zeros((), dtype=torch.float64)
    for position, candidates in enumerate([[1, 4, 2, 0, 2], [2, 4, 0], [5, 4, 2, 0, 2]]):
        logits = users[position] @ items[candidates].T
        expected = expected + F.cross_entropy(logits, torch.tensor(0))
    check(softmax_sum(users, items, batch), expected, (users, items))


def test_sampled_softmax_with_only_hits_is_zero_with_zero_gradient() -> None:
    users, items = make_vectors(1)
    loss = softmax_sum(users, items, make_batch([3], [3, 3], shared=True))
    assert loss == 0
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss, (users, items)))


@SHAPES
def test_log_q_gives_each_negative_the_weight_of_the_items_it_stands_for(
    seed: int, positions: int, catalogue: int
) -> None:
    users, items, batch = problem(seed, positions, catalogue)
    expected = torch.rand(catalogue + 1, dtype=torch.float64) + 0.1
    total = torch.zeros((), dtype=torch.float64)
    for user, target in zip(users, batch.targets, strict=True):
        others = batch.negatives[batch.negatives != target]
        partition = (user @ items[target]).exp() + ((items[others] @ user).exp() / expected[others]).sum()
        total = total + partition.log() - user @ items[target]
    check(softmax_sum(users, items, batch, expected), total, (users, items))


@torch.no_grad()
@pytest.mark.parametrize("in_batch", [0, 1000])
def test_log_q_corrected_sampled_softmax_tends_to_the_full_one(in_batch: int) -> None:
    generator = torch.Generator().manual_seed(3)
    count, uniform, positions = 100, 1000, 20
    users = torch.randn(positions, 4, generator=generator).double()
    items = torch.randn(count + 1, 4, generator=generator).double()
    share = torch.cat([torch.zeros(1), (1 / torch.arange(1, count + 1)) ** 1.5]).double()
    share /= share.sum()
    targets = share.multinomial(positions, replacement=True, generator=generator)
    catalogue = torch.arange(1, count + 1)
    full = softmax_sum(users, items, shared_batch(targets, catalogue)) / positions
    expected = uniform / count + in_batch * share
    corrected, plain = [], []
    for _ in range(100):
        drawn = [torch.randint(1, count + 1, (uniform,), generator=generator)]
        if in_batch:
            drawn.append(share.multinomial(in_batch, replacement=True, generator=generator))
        batch = shared_batch(targets, torch.cat(drawn))
        corrected.append(softmax_sum(users, items, batch, expected) / positions)
        plain.append(softmax_sum(users, items, batch) / positions)
    found = torch.stack(corrected)
    error = found.mean() - full
    # The logarithm's bias is half the variance of the estimated sum, relative to it; five standard errors beside.
    assert abs(error) < 5 * found.std() / 10 + found.var() * positions
    assert abs(error) < 0.01 < 1 < torch.stack(plain).mean() - full


@SHAPES
@pytest.mark.parametrize("chunk_logits", [1, 40, 10**6])
def test_softmax_in_chunks_is_the_cross_entropy_over_the_catalogue(
    seed: int, positions: int, catalogue: int, chunk_logits: int
) -> None:
    users, items, batch = problem(seed, positions, catalogue)
    batch = shared_batch(batch.targets, torch.arange(1, catalogue + 1))
    expected = F.cross_entropy(users @ items[1:].T, batch.targets - 1, reduction="sum")
    check(softmax_sum(users, items, batch, chunk_logits=chunk_logits), expected, (users, items))


def test_softmax_has_the_gradient_of_finite_differences() -> None:
    users, items, batch = problem(4, 5, 9)
    batch = shared_batch(batch.targets, torch.arange(1, 10))
    # Squared, so that the gradient that reaches the function is not 1.
    assert torch.autograd.gradcheck(lambda u, v: softmax_sum(u, v, batch, chunk_logits=20).square(), (users, items))


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return result


def test_softmax_holds_no_more_logits_than_it_is_given() -> None:
    users, items, batch = problem(5, 100, 400)
    batch = shared_batch(batch.targets, torch.arange(1, 401))
    with Largest() as largest:
        softmax_sum(users, items, batch, chunk_logits=3000).backward()
    assert largest.elements == 2800  # seven positions of 400 negatives, against 40,000 logits
    with Largest() as largest:
        softmax_sum(users, items, batch, chunk_logits=40_000).backward()
    assert largest.elements == 40_000
