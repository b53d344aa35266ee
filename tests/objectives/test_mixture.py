"""Partitions of experts and ApproxNDCG against their definitions, one position at a time."""

from __future__ import annotations

import torch

from pad_dist.objectives.mixture import approx_ndcg_sum, log_partition
from tests.objectives.problems import SHAPES, check, problem, shared_batch


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
    target_ranks = 1 + (scores > scores.gather(1, batch.targets.unsqueeze(1) - 1)).sum(1)
    ones = torch.ones(catalogue + 1, dtype=torch.float64)
    found = approx_ndcg_sum(users, items, batch, ones, 1e-6)
    torch.testing.assert_close(found, (1 - 1 / (1 + target_ranks.double()).log2()).sum())
