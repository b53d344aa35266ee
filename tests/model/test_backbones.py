"""Backbones on jagged sequences: what a position may see, and the form of each."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pad_dist.config import LigrConfig, ModelConfig
from pad_dist.model.backbones.base import Backbone, build_backbone
from pad_dist.model.backbones.caser import Caser
from pad_dist.model.backbones.jagged import Jagged
from pad_dist.model.backbones.transformer import LigrBlock, Transformer

TWO_LAYERS: dict[str, dict[str, Any]] = {"sasrec": {"blocks": 2}, "ligr": {"blocks": 2}, "gru4rec": {"layers": 2}}
FORMS: list[dict[str, Any]] = [
    dict(kind="sasrec", norm=norm, positions=p) for norm, p in itertools.product(("pre", "post"), ("end", "none"))
]
OTHERS: list[dict[str, Any]] = [{"kind": name} for name in ("ligr", "gru4rec", "caser")]
FORMS += [
    *OTHERS,
    {"kind": "ligr", "positions": "end"},
    {"kind": "gru4rec", "layers": 1},
    {"kind": "caser", "window": 3},
]
WITHOUT_POSITIONS = pytest.mark.parametrize(
    "form", [{"kind": "sasrec"}, *OTHERS], ids=["sasrec", "ligr", "gru4rec", "caser"]
)


def make(kind: str, max_length: int = 5, **form: Any) -> Backbone:
    backbone = {"kind": kind} | TWO_LAYERS.get(kind, {}) | form
    torch.manual_seed(0)
    model = ModelConfig.model_validate({"dim": 8, "max_length": max_length, "backbone": backbone})
    return build_backbone(model).double().eval()


@pytest.fixture(params=FORMS, ids=lambda form: "-".join(str(value) for value in form.values()))
def encoder(request: pytest.FixtureRequest) -> nn.Module:
    return make(**request.param)


def vectors(total: int) -> torch.Tensor:
    return torch.randn(total, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_later_item_changes_no_earlier_output(encoder: nn.Module) -> None:
    x = vectors(9)
    lengths = torch.tensor([5, 4])
    before = encoder(x, lengths)
    x[3] = x[3].flip(0)  # a shift or scale would vanish in the layer norm
    after = encoder(x, lengths)
    torch.testing.assert_close(after[:3], before[:3])
    torch.testing.assert_close(after[5:], before[5:])
    assert ((after[3:5] - before[3:5]).abs().amax(dim=1) > 1e-3).all()


@torch.no_grad()
def test_output_does_not_depend_on_batch_neighbours(encoder: nn.Module) -> None:
    lengths = [1, 5, 3, 2]
    x = vectors(sum(lengths))
    alone = [encoder(part, torch.tensor([len(part)])) for part in x.split(lengths)]
    torch.testing.assert_close(encoder(x, torch.tensor(lengths)), torch.cat(alone))


@torch.no_grad()
def test_positions_are_counted_from_the_end() -> None:
    encoder = make("sasrec", norm="post", positions="end")
    assert isinstance(encoder, Transformer) and encoder.positions is not None
    x = vectors(2)
    before = encoder(x, torch.tensor([2]))
    encoder.positions.weight[:3] += 1  # a sequence of 2 in L = 5 uses the last two positions
    torch.testing.assert_close(encoder(x, torch.tensor([2])), before)
    encoder.positions.weight[3, 0] += 1
    assert not torch.allclose(encoder(x, torch.tensor([2])), before)


def test_no_sequences_give_no_outputs_and_zero_gradients(encoder: nn.Module) -> None:
    output = encoder(vectors(0), torch.zeros(0, dtype=torch.int64))
    assert output.shape == (0, 8)
    output.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in encoder.parameters())


@WITHOUT_POSITIONS
@torch.no_grad()
def test_room_for_longer_sequences_changes_nothing(form: dict[str, Any]) -> None:
    x, lengths = vectors(9), torch.tensor([5, 1, 3])
    torch.testing.assert_close(make(**form, max_length=11)(x, lengths), make(**form)(x, lengths))


@WITHOUT_POSITIONS
@torch.no_grad()
def test_order_matters_without_positions(form: dict[str, Any]) -> None:
    encoder = make(**form)
    x = vectors(3)
    assert not torch.allclose(encoder(x, torch.tensor([3]))[2], encoder(x[[1, 0, 2]], torch.tensor([3]))[2])


@pytest.mark.parametrize(
    "form", [{"kind": "sasrec", "norm": "pre"}, {"kind": "sasrec", "norm": "post"}, {"kind": "ligr"}]
)
@torch.no_grad()
def test_output_of_a_transformer_is_normalised(form: dict[str, Any]) -> None:
    output = make(**form)(vectors(4), torch.tensor([4]))
    torch.testing.assert_close(output.mean(dim=1), torch.zeros(4, dtype=torch.float64))


def test_dropout_acts_in_training_alone(encoder: nn.Module) -> None:
    x, lengths = vectors(4), torch.tensor([4])
    torch.testing.assert_close(encoder(x, lengths), encoder(x, lengths))
    encoder.train()
    assert not torch.allclose(encoder(x, lengths), encoder(x, lengths))


@torch.no_grad()
def test_caser_convolves_the_window_of_each_position() -> None:
    encoder = make("caser", window=3, horizontal=2, vertical=4)
    assert isinstance(encoder, Caser)
    x = vectors(7)
    expected = []
    for sequence in x.split([5, 2]):
        padded = torch.cat([torch.zeros(2, 8).double(), sequence])
        for place in range(len(sequence)):
            window = padded[place : place + 3]
            features = []
            for height, conv in enumerate(encoder.horizontal, 1):
                filters, bias = conv.weight.transpose(1, 2).flatten(1), conv.bias
                places = [filters @ window[top : top + height].flatten() + bias for top in range(4 - height)]
                features.append(torch.stack(places).relu().amax(0))
            features.append((encoder.vertical.weight @ window + encoder.vertical.bias[:, None]).T.flatten())
            expected.append(encoder.out(encoder.hidden(torch.cat(features)).relu()))
    torch.testing.assert_close(encoder(x, torch.tensor([5, 2])), torch.stack(expected))


@torch.no_grad()
def test_ligr_gates_what_each_sublayer_adds() -> None:
    torch.manual_seed(0)
    block = LigrBlock(LigrConfig(heads=2), ModelConfig(dim=8)).double().eval()
    x = vectors(4)

    def attention(x: Tensor) -> Tensor:
        layer = block.attention
        query, key, value = (
            linear(x).view(4, 2, 4).transpose(0, 1) for linear in (layer.query, layer.key, layer.value)
        )
        scores = (query @ key.transpose(1, 2) / 2).masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf)
        mixed: Tensor = layer.out((scores.softmax(2) @ value).transpose(0, 1).flatten(1))
        return mixed

    layer = block.feed_forward
    middle = x + block.attention_gate(x).sigmoid() * attention(F.layer_norm(x, (8,), eps=1e-6))
    normed = F.layer_norm(middle, (8,), eps=1e-6)
    opening = layer.opening(normed)
    change = layer.out(opening * opening.sigmoid() * layer.value(normed))
    expected = middle + block.feed_forward_gate(middle).sigmoid() * change
    torch.testing.assert_close(block(x, Jagged(torch.tensor([4]), 4, 6)), expected)
