"""Pad: experts of a stage, the mixture as one inner product, the forms of items."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from pad_dist.config import ExpertName, ModelConfig
from pad_dist.data.batches import Batch, Rows
from pad_dist.model.experts import AlignedExpert
from pad_dist.model.gate import BINS, Gate, SmoothGate
from pad_dist.model.pad import EXPERTS, Pad, mixture_users

CONFIG = ModelConfig(dim=8, max_length=4)
BACKBONES = pytest.mark.parametrize("backbone", ["sasrec", "ligr", "gru4rec", "caser"])
ITEMS, TEXT_DIM = 7, 5


def rows() -> Rows:
    generator = torch.Generator().manual_seed(3)
    return {
        "id": torch.randn(ITEMS, 8, generator=generator),
        "aligned": torch.randn(ITEMS, 8, generator=generator),
        "text": torch.randn(ITEMS, TEXT_DIM, generator=generator),
        "bin": torch.tensor([0, 1, 10, 3, 3, 7, 2]),
        "frequency": torch.tensor([0, 300, 0, 9, 8, 2, 50], dtype=torch.int32),
    }


def batch() -> Batch:
    return Batch(
        items=torch.tensor([0, 4, 9, 11, 12, 30, 41]),
        lengths=torch.tensor([2, 3]),
        inputs=torch.tensor([1, 2, 3, 4, 5]),
        targets=torch.tensor([2, 6, 4, 5, 1]),
        negatives=torch.tensor([3, 3, 1, 1, 2]),
        occurrences=torch.ones(ITEMS),
        positions=torch.tensor(5),
        shared_negatives=False,
    )


def make(*names: ExpertName, config: ModelConfig = CONFIG) -> Pad:
    torch.manual_seed(0)
    return Pad(names, config, TEXT_DIM).eval()


@torch.no_grad()
def test_mixture_is_the_gated_sum_of_expert_scores() -> None:
    output = make(*EXPERTS)(batch(), rows())
    assert output.gate is not None
    expected = sum(output.gate[:, m] * (output.users[n] @ output.items[n].T) for m, n in enumerate(EXPERTS))
    users, items = output.mixture()
    torch.testing.assert_close(users @ items.T, expected)


@BACKBONES
@pytest.mark.parametrize("names", [("id",), ("text",), ("id", "aligned"), EXPERTS])
@torch.no_grad()
def test_evaluation_uses_the_vectors_of_training(names: tuple[ExpertName, ...], backbone: str) -> None:
    pad = make(*names, config=CONFIG.model_copy(update={"backbone": backbone}))
    users, items = pad(batch(), rows()).mixture()
    torch.testing.assert_close(pad.encode(batch().inputs, batch().lengths, rows()), users[[1, 4]])
    torch.testing.assert_close(pad.catalogue(rows()), items)


@torch.no_grad()
def test_ungated_blocks_are_the_experts_own_item_vectors() -> None:
    pad = make(*EXPERTS)
    output = pad(batch(), rows())
    own = pad.own_columns(pad.catalogue(rows(), gated=False))
    assert list(own) == list(output.items) == list(EXPERTS)
    for name in EXPERTS:
        torch.testing.assert_close(own[name], output.items[name])


def test_a_gate_weighs_several_experts() -> None:
    assert make("aligned").gate is None
    assert make(*EXPERTS).gate is not None
    gate = make("aligned", "text", config=CONFIG.model_copy(update={"gate_init": "ramps"})).gate
    assert gate is not None and gate.logits[[0, 10]].tolist() == [[-4, 0], [-5, 1]]


@torch.no_grad()
def test_a_mixture_of_log_probabilities_takes_each_expert_s_partition_away() -> None:
    torch.manual_seed(0)
    pad = Pad(EXPERTS, CONFIG, TEXT_DIM, log_mix=True).double().eval()
    assert pad.gate is not None and pad.gate.log_scale is not None
    pad.gate.log_scale.fill_(0.3)
    torch.nn.init.normal_(pad.gate.logits)
    output = pad(batch(), rows())
    partitions = torch.randn(5, len(EXPERTS), dtype=torch.float64)
    users, items = output.mixture(partitions)
    assert output.gate is not None
    torch.testing.assert_close(output.gate.sum(1), torch.full((ITEMS,), 0.3, dtype=torch.float64).exp())
    logits = [output.users[n] @ output.items[n].T - partitions[:, m : m + 1] for m, n in enumerate(EXPERTS)]
    torch.testing.assert_close(users @ items.T, sum(output.gate[:, m] * scores for m, scores in enumerate(logits)))
    torch.testing.assert_close(pad.catalogue(rows()), items)
    encoded = pad.encode(batch().inputs, batch().lengths, rows())
    torch.testing.assert_close(mixture_users(encoded, partitions[[1, 4]], lifts=False), users[[1, 4]])


@pytest.mark.parametrize("log_mix", [False, True])
@torch.no_grad()
def test_a_smooth_gate_weighs_experts_by_the_item_s_frequency_and_lifts_rare_items(log_mix: bool) -> None:
    torch.manual_seed(0)
    pad = Pad(EXPERTS, CONFIG, TEXT_DIM, "smooth", log_mix).double().eval()
    gate = pad.gate
    assert isinstance(gate, SmoothGate)
    for parameter in gate.parameters():
        torch.nn.init.normal_(parameter)
    output = pad(batch(), rows())
    partitions = torch.randn(5, len(EXPERTS), dtype=torch.float64) if log_mix else None
    users, items = output.mixture(partitions)
    for item, frequency in enumerate(rows()["frequency"].tolist()):
        rarity = 1 / (1 + math.log(1 + frequency))
        odds = (gate.level + gate.slope * rarity).exp()
        scores = torch.stack([output.users[name] @ output.items[name][item] for name in EXPERTS], dim=1)
        scores = scores if partitions is None else scores - partitions
        torch.testing.assert_close(users @ items[item], scores @ (odds / odds.sum()) + gate.lift * rarity)
    torch.testing.assert_close(pad.catalogue(rows()), items)
    encoded = pad.encode(batch().inputs, batch().lengths, rows())
    again = mixture_users(encoded, None if partitions is None else partitions[[1, 4]], pad.lifts)
    torch.testing.assert_close(again, users[[1, 4]])
    experts = 3 * CONFIG.dim + TEXT_DIM
    assert items.shape[1] == experts + pad.extra_columns == experts + 1 + len(EXPERTS) * log_mix


@torch.no_grad()
def test_only_scored_positions_give_user_vectors() -> None:
    pad = make(*EXPERTS)
    every = pad(batch(), rows()).users
    some = pad(replace(batch(), scored=torch.tensor([1, 4])), rows()).users
    for name in EXPERTS:
        torch.testing.assert_close(some[name], every[name][[1, 4]])


@pytest.mark.parametrize("names", [("aligned", "text"), EXPERTS])
@torch.no_grad()
def test_without_a_gate_all_experts_count_alike(names: tuple[ExpertName, ...]) -> None:
    pad = Pad(names, CONFIG, TEXT_DIM, gate=None).double().eval()
    assert not [name for name, _ in pad.named_parameters() if "gate" in name]
    output = pad(batch(), rows())
    users, items = output.mixture()
    scores = torch.stack([output.users[name] @ output.items[name].T for name in names])
    torch.testing.assert_close(users @ items.T, scores.mean(0))
    torch.testing.assert_close(pad.catalogue(rows()), items)


def test_experts_keep_one_order_however_they_are_named() -> None:
    assert make("text", "id").names == ("id", "text")


@torch.no_grad()
def test_dropped_rows_leave_the_text_alone_in_training() -> None:
    pad = make("aligned", config=CONFIG.model_copy(update={"fusion": "sum", "dropout": 0.0, "row_dropout": 0.5}))
    expert = cast(AlignedExpert, pad.expert("aligned"))
    text, anchor = torch.randn(2, 400, CONFIG.dim)
    torch.testing.assert_close(expert.fuse(text, anchor), text + anchor)
    found = expert.train().fuse(text, anchor)
    dropped = (found == text).all(1)
    assert 150 < dropped.sum() < 250
    torch.testing.assert_close(found[~dropped], (text + anchor)[~dropped])


@torch.no_grad()
def test_fusion_sum_adds_text_to_the_anchor() -> None:
    pad = make("aligned")
    output = pad(batch(), rows())
    assert output.projected is not None and output.anchored is not None
    torch.testing.assert_close(output.anchored, rows()["aligned"])
    torch.testing.assert_close(output.items["aligned"], output.projected + output.anchored)


@pytest.mark.parametrize("activation", [False, True])
@torch.no_grad()
def test_projector_activation_bends_the_last_layer(activation: bool) -> None:
    pad = make("text", config=CONFIG.model_copy(update={"projector_activation": activation}))
    vectors = pad.catalogue({"text": 10 * rows()["text"]})
    assert bool(vectors.min() < -0.17) is not activation  # the least value of GELU


@BACKBONES
@torch.no_grad()
def test_bf16_weights_take_fp32_rows(backbone: str) -> None:
    pad = make(*EXPERTS, config=CONFIG.model_copy(update={"backbone": backbone})).bfloat16()
    assert pad(batch(), rows()).mixture()[0].dtype == torch.bfloat16


@BACKBONES
@torch.no_grad()
def test_weights_start_xavier_normal_and_biases_at_zero(backbone: str) -> None:
    pad = make("text", config=ModelConfig.model_validate({"dim": 128, "backbone": backbone}))
    layers = [m for m in pad.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.GRU)]
    weights = [p for layer in layers for p in layer.parameters()]
    assert len(weights) == sum(1 for p in pad.parameters()) - 2 * sum(
        isinstance(m, nn.LayerNorm) for m in pad.modules()
    )
    for weight in weights:
        if weight.dim() == 1:
            assert not weight.any()
            continue
        field = weight[0, 0].numel()
        expected = (2 / (weight.shape[1] * field + weight.shape[0] * field)) ** 0.5
        if weight.numel() > 1000:
            assert abs(float(weight.std()) / expected - 1) < 0.1
            assert weight.abs().max() > 2.5 * expected  # a uniform draw ends at 1.73


@BACKBONES
def test_every_weight_learns_from_the_mixture(backbone: str) -> None:
    config = CONFIG.model_copy(update={"positions": "end", "fusion": "concat", "backbone": backbone})
    pad = make(*EXPERTS, config=config)
    users, items = pad(batch(), rows()).mixture()
    (users @ items.T).square().sum().backward()
    dead = [name for name, p in pad.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@torch.no_grad()
def test_gate_rows_sum_to_one_and_favour_text_on_rare_items() -> None:
    weights: Tensor = Gate(EXPERTS, "ramps")({"bin": torch.arange(BINS)})[0]
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(BINS))
    assert weights[1, 0] > weights[1, 2]
    assert weights[10, 2] > weights[10, 0]
