"""Recommendation losses against torch's own, one position at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pad_dist.data.batches import Batch
from pad_dist.objectives.recommendation import (
    approx_ndcg_sum,
    bce_sum,
    gbce_beta,
    gbce_sum,
    log_partition,
    softmax_sum,
)

SHARED = [partial(gbce_sum, beta=0.5), softmax_sum]
SHAPES = pytest.mark.parametrize(("seed", "positions", "catalogue"), [(0, 1, 2), (1, 7, 5), (2, 30, 64)])


def make_batch(targets: list[int], negatives: list[int], shared: bool, items: int = 6) -> Batch:
    return Batch(
        items=torch.arange(items),
        lengths=torch.tensor([len(targets)]),
        inputs=torch.zeros(len(targets), dtype=torch.int64),
        targets=torch.tensor(targets, dtype=torch.int64),
        negatives=torch.tensor(negatives, dtype=torch.int64),
        occurrences=torch.ones(items),
        positions=torch.tensor(len(targets)),
        shared_negatives=shared,
    )


def shared_batch(targets: Tensor, negatives: Tensor) -> Batch:
    return make_batch(targets.tolist(), negatives.tolist(), shared=True)


def problem(seed: int, positions: int, catalogue: int) -> tuple[Tensor, Tensor, Batch]:
    """Users, items 0..catalogue, and a batch with about as many shared negatives, repeats and hits among them."""
    generator = torch.Generator().manual_seed(seed)
    users, items = (torch.randn(n, 4, dtype=torch.float64, generator=generator) for n in (positions, catalogue + 1))
    targets, negatives = (torch.randint(1, catalogue + 1, (n,), generator=generator) for n in (positions, catalogue))
    return users.requires_grad_(), items.requires_grad_(), shared_batch(targets, negatives)


def make_vectors(positions: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(positions)
    users, items = (torch.randn(n, 4, dtype=torch.float64, generator=generator) for n in (positions, 6))
    return users.requires_grad_(), items.requires_grad_()


def check(loss: Tensor, expected: Tensor, inputs: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(loss, expected)
    ours, theirs = (torch.autograd.grad(value, inputs) for value in (loss, expected))
    torch.testing.assert_close(ours, theirs)


def test_bce_sums_target_and_negative() -> None:
    users, items = make_vectors(3)
    batch = make_batch([1, 2, 5], [4, 4, 0], shared=False)
    expected = F.binary_cross_entropy_with_logits(
        torch.cat([(users * items[[1, 2, 5]]).sum(1), (users * items[[4, 4, 0]]).sum(1)]),
        torch.tensor([1.0] * 3 + [0.0] * 3, dtype=torch.float64),
        reduction="sum",
    )
    check(bce_sum(users, items, batch), expected, (users, items))


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
def test_log_partition_of_the_whole_catalogue_is_exact(seed: int, positions: int, catalogue: int) -> None:
    users, items, batch = problem(seed, positions, catalogue)
    batch = shared_batch(batch.targets, torch.arange(1, catalogue + 1))
    expected = torch.ones(catalogue + 1, dtype=torch.float64)
    torch.testing.assert_close(log_partition(users, items, batch, expected), (users @ items[1:].T).logsumexp(1))


def test_log_partition_is_estimated_from_a_sample() -> None:
    users, items, batch = problem(3, 6, 4000)
    users = users / 3  # sums of few large terms need more draws
    exact = (users @ items[1:].T).logsumexp(1)
    some = torch.randperm(4000, generator=torch.Generator().manual_seed(0))[:2000] + 1
    half = torch.full((4001,), 0.5, dtype=torch.float64)
    found = log_partition(users, items, shared_batch(batch.targets, some), half)
    torch.testing.assert_close(found, exact, rtol=0, atol=0.1)


@SHAPES
def test_approx_ndcg_ranks_the_target_smoothly_among_what_each_negative_stands_for(
    seed: int, positions: int, catalogue: int
) -> None:
    users, items, batch = problem(seed, positions, catalogue)
    generator = torch.Generator().manual_seed(seed)
    expected = torch.rand(catalogue + 1, dtype=torch.float64, generator=generator) + 0.1
    weights = torch.rand(positions, dtype=torch.float64, generator=generator)
    total = torch.zeros((), dtype=torch.float64)
    for user, target, weight in zip(users, batch.targets, weights, strict=True):
        others = batch.negatives[batch.negatives != target]
        above = torch.sigmoid((items[others] @ user - user @ items[target]) / 0.3) / expected[others]
        total = total + weight * (1 - 1 / (2 + above.sum()).log2())
    check(approx_ndcg_sum(users, items, batch, expected, 0.3, weights), total, (users, items))


@SHAPES
def test_approx_ndcg_of_the_whole_catalogue_tends_to_ndcg(seed: int, positions: int, catalogue: int) -> None:
    users, items, batch = problem(seed, positions, catalogue)
    batch = shared_batch(batch.targets, torch.arange(1, catalogue + 1))
    scores = users @ items[1:].T
    ranks = 1 + (scores > scores.gather(1, batch.targets.unsqueeze(1) - 1)).sum(1)
    ones = torch.ones(catalogue + 1, dtype=torch.float64)
    found = approx_ndcg_sum(users, items, batch, ones, 1e-6)
    torch.testing.assert_close(found, (1 - 1 / (1 + ranks.double()).log2()).sum())


@SHAPES
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_gbce_weighs_the_target_by_beta(seed: int, positions: int, catalogue: int, beta: float) -> None:
    users, items, batch = problem(seed, positions, catalogue)
    total = torch.zeros((), dtype=torch.float64)
    for user, target in zip(users, batch.targets, strict=True):
        others = batch.negatives[batch.negatives != target]
        total = total - beta * torch.sigmoid(user @ items[target]).log()
        total = total - (1 - torch.sigmoid(items[others] @ user)).log().sum()
    check(gbce_sum(users, items, batch, beta), total / (len(batch.negatives) + 1), (users, items))


def test_gbce_without_calibration_is_bce() -> None:
    users, items = make_vectors(3)
    paired = make_batch([1, 2, 5], [4, 4, 4], shared=False)
    found = gbce_sum(users, items, make_batch([1, 2, 5], [4], shared=True), gbce_beta(1, 6, t=0.0))
    check(found, bce_sum(users, items, paired) / 2, (users, items))


def test_gbce_calibrates_by_the_sampling_rate() -> None:
    # gSASRec's formula, rate * (t * (1 - 1 / rate) + 1 / rate), at 16 of 32 others.
    assert [gbce_beta(16, 33, t) for t in (0.0, 0.5, 1.0)] == [1.0, 0.75, 0.5]
    assert gbce_beta(2048, 33, 1.0) == 1.0
    assert gbce_beta(1, 1, 1.0) == 1.0


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


def test_losses_stay_finite_at_extreme_logits() -> None:
    users = torch.tensor([[1e3], [-1e3]], requires_grad=True)
    items = torch.tensor([[1e3], [-1e3]], requires_grad=True)
    one = make_batch([0, 0], [1], shared=True, items=2)
    for loss, expected in [
        (bce_sum(users, items, make_batch([0, 0], [1, 1], shared=False, items=2)), 2e6),
        (gbce_sum(users, items, one, beta=0.5), 0.75e6),
        (softmax_sum(users, items, one), 2e6),
    ]:
        assert float(loss.detach()) == expected
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, (users, items)))


Loss = Callable[[Tensor, Tensor, Batch], Tensor]


@pytest.mark.parametrize("loss", [bce_sum, *SHARED])
def test_bf16_vectors_give_fp32_losses(loss: Loss) -> None:
    users, items = (v.detach().bfloat16() for v in make_vectors(2))
    batch = make_batch([1, 2], [3, 4], shared=loss is not bce_sum)
    value = loss(users, items, batch)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(users.float(), items.float(), batch))


@pytest.mark.parametrize("loss", [bce_sum, *SHARED])
def test_no_positions_give_zero_with_zero_gradient(loss: Loss) -> None:
    users, items = make_vectors(0)
    value = loss(users, items, make_batch([], [] if loss is bce_sum else [1], shared=loss is not bce_sum))
    assert value == 0
    assert all(not gradient.any() for gradient in torch.autograd.grad(value, (users, items)))
