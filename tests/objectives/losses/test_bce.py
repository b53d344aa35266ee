"""Binary cross-entropies against torch's own, one position at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pad_dist.objectives.losses.bce import bce_sum, gbce_beta, gbce_sum
from tests.objectives.problems import SHAPES, check, make_batch, make_vectors, problem


def test_bce_sums_target_and_negative() -> None:
    users, items = make_vectors(3)
    batch = make_batch([1, 2, 5], [4, 4, 0], shared=False)
    expected = F.binary_cross_entropy_with_logits(
        torch.cat([(users * items[[1, 2, 5]]).sum(1), (users * items[[4, 4, 0]]).sum(1)]),
        torch.tensor([1.0] * 3 + [0.0] * 3, dtype=torch.float64),
        reduction="sum",
    )
    check(bce_sum(users, items, batch), expected, (users, items))


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
