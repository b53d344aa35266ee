"""Small batches with vectors of users and items, and what the tests of losses over them share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pad_dist.data.batches import Batch

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
