"""What all recommendation losses have in common."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from pad_dist.data.batches import Batch
from pad_dist.objectives.losses.bce import bce_sum, gbce_sum
from pad_dist.objectives.losses.softmax import softmax_sum
from tests.objectives.problems import make_batch, make_vectors

Loss = Callable[[Tensor, Tensor, Batch], Tensor]
SHARED: list[Loss] = [partial(gbce_sum, beta=0.5), softmax_sum]


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
