"""Recommendation losses against torch's own, one position at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pad_dist.data.batches import Batch
from pad_dist.objectives.recommendation import bce_sum, sampled_softmax_sum


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
    check(sampled_softmax_sum(users, items, batch), expected, (users, items))


def test_sampled_softmax_with_only_hits_is_zero_with_zero_gradient() -> None:
    users, items = make_vectors(1)
    loss = sampled_softmax_sum(users, items, make_batch([3], [3, 3], shared=True))
    assert loss == 0
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss, (users, items)))


def test_losses_stay_finite_at_extreme_logits() -> None:
    users = torch.tensor([[1e3], [-1e3]], requires_grad=True)
    items = torch.tensor([[1e3], [-1e3]], requires_grad=True)
    for loss, expected in [
        (bce_sum(users, items, make_batch([0, 0], [1, 1], shared=False, items=2)), 2e6),
        (sampled_softmax_sum(users, items, make_batch([0, 0], [1], shared=True, items=2)), 2e6),
    ]:
        assert float(loss.detach()) == expected
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, (users, items)))


def test_bf16_vectors_give_fp32_losses() -> None:
    users, items = (v.detach().bfloat16() for v in make_vectors(2))
    for loss, shared in ((bce_sum, False), (sampled_softmax_sum, True)):
        batch = make_batch([1, 2], [3, 4], shared)
        value = loss(users, items, batch)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, loss(users.float(), items.float(), batch))


def test_no_positions_give_zero() -> None:
    users, items = make_vectors(0)
    assert bce_sum(users, items, make_batch([], [], shared=False)) == 0
    assert sampled_softmax_sum(users, items, make_batch([], [1], shared=True)) == 0
