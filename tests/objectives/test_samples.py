"""Losses over the samples of all ranks: two ranks share the loss of one."""

from __future__ import annotations

import torch

from pad_dist.objectives.samples import once
from tests.objectives.alignments.alignment_worker import LOSSES, cases, shares, solve
from tests.support.ranks import run_ranks


def test_two_ranks_share_the_loss_of_one() -> None:
    (first_once, first), (second_once, second) = run_ranks(shares, 2)
    for name, loss in LOSSES.items():
        for number, (samples, _) in enumerate(cases()):
            value, text, anchor = solve(loss, *samples)
            halves = [[torch.from_numpy(x) for x in rank[name][number]] for rank in (first, second)]
            torch.testing.assert_close(halves[0][0] + halves[1][0], value, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(torch.cat([half[1] for half in halves]), text, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(torch.cat([half[2] for half in halves]), anchor, rtol=1e-9, atol=1e-12)
    assert (first_once, second_once) == ([1, 0.5, 0.5], [0.5, 1, 0.5, 1])


def test_on_one_rank_each_item_is_one_sample() -> None:
    assert once(torch.tensor([3, 8, 9])).tolist() == [1, 1, 1]
    assert once(torch.zeros(0, dtype=torch.int64)).tolist() == []
