"""SASRec on jagged sequences: what a position may see, and both norms."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from pad_dist.config import ModelConfig
from pad_dist.model.encoder import SasRec

FORMS = [dict(norm=norm, positions=p) for norm, p in itertools.product(("pre", "post"), ("end", "none"))]


def make(**form: Any) -> SasRec:
    torch.manual_seed(0)
    return SasRec(ModelConfig(dim=8, blocks=2, heads=2, max_length=5, **form)).double().eval()


@pytest.fixture(params=FORMS, ids=lambda form: f"{form['norm']}-{form['positions']}")
def encoder(request: pytest.FixtureRequest) -> SasRec:
    return make(**request.param)


def vectors(total: int) -> torch.Tensor:
    return torch.randn(total, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_later_item_changes_no_earlier_output(encoder: SasRec) -> None:
    x = vectors(9)
    lengths = torch.tensor([5, 4])
    before = encoder(x, lengths)
    x[3] = x[3].flip(0)  # a shift or scale would vanish in the layer norm
    after = encoder(x, lengths)
    torch.testing.assert_close(after[:3], before[:3])
    torch.testing.assert_close(after[5:], before[5:])
    assert ((after[3:5] - before[3:5]).abs().amax(dim=1) > 1e-3).all()


@torch.no_grad()
def test_output_does_not_depend_on_batch_neighbours(encoder: SasRec) -> None:
    lengths = [1, 5, 3, 2]
    x = vectors(sum(lengths))
    alone = [encoder(part, torch.tensor([len(part)])) for part in x.split(lengths)]
    torch.testing.assert_close(encoder(x, torch.tensor(lengths)), torch.cat(alone))


@torch.no_grad()
def test_positions_are_counted_from_the_end() -> None:
    encoder = make(norm="post", positions="end")
    assert encoder.positions is not None
    x = vectors(2)
    before = encoder(x, torch.tensor([2]))
    encoder.positions.weight[:3] += 1  # a sequence of 2 in L = 5 uses the last two positions
    torch.testing.assert_close(encoder(x, torch.tensor([2])), before)
    encoder.positions.weight[3, 0] += 1
    assert not torch.allclose(encoder(x, torch.tensor([2])), before)


def test_no_sequences_give_no_outputs_and_zero_gradients(encoder: SasRec) -> None:
    output = encoder(vectors(0), torch.zeros(0, dtype=torch.int64))
    assert output.shape == (0, 8)
    output.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in encoder.parameters())


@torch.no_grad()
def test_order_matters_without_positions() -> None:
    encoder = make(positions="none")
    x = vectors(3)
    assert not torch.allclose(encoder(x, torch.tensor([3]))[2], encoder(x[[1, 0, 2]], torch.tensor([3]))[2])


@pytest.mark.parametrize("norm", ["pre", "post"])
@torch.no_grad()
def test_output_is_normalised(norm: str) -> None:
    output = make(norm=norm)(vectors(4), torch.tensor([4]))
    torch.testing.assert_close(output.mean(dim=1), torch.zeros(4, dtype=torch.float64))


def test_dropout_acts_in_training_alone() -> None:
    encoder = make()
    x, lengths = vectors(4), torch.tensor([4])
    torch.testing.assert_close(encoder(x, lengths), encoder(x, lengths))
    encoder.train()
    assert not torch.allclose(encoder(x, lengths), encoder(x, lengths))
