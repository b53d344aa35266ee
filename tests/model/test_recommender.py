"""Recommender: experts of a stage, the mixture as one inner product, the forms of items."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from pad_dist.config import EXPERTS, DisentangleConfig, ExpertName, ModelConfig
from pad_dist.data.batches import Batch, Rows
from pad_dist.model.experts.aligned import AlignedExpert
from pad_dist.model.gate import BINS, Gate, SmoothGate
from pad_dist.model.recommender import Recommender, mixture_users

ALL = tuple(EXPERTS)
BACKBONES = pytest.mark.parametrize("backbone", ["sasrec", "ligr", "gru4rec", "caser"])
ITEMS, DIM, TEXT_DIM = 7, 8, 5


def config(**sections: Any) -> ModelConfig:
    return ModelConfig.model_validate({"dim": DIM, "max_length": 4} | sections)


def rows() -> Rows:
    generator = torch.Generator().manual_seed(3)
    return {
        "id": torch.randn(ITEMS, DIM, generator=generator),
        "aligned": torch.randn(ITEMS, DIM, generator=generator),
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


def make(*names: ExpertName, mixture: DisentangleConfig | None = None, **sections: Any) -> Recommender:
    """A model with these sections of `model`."""
    torch.manual_seed(0)
    return Recommender(names, config(**sections), TEXT_DIM, mixture).eval()


@torch.no_grad()
def test_mixture_is_the_gated_sum_of_expert_scores() -> None:
    output = make(*ALL)(batch(), rows())
    assert output.gate is not None
    expected = sum(output.gate[:, m] * (output.users[n] @ output.items[n].T) for m, n in enumerate(ALL))
    users, items = output.mixture()
    torch.testing.assert_close(users @ items.T, expected)


@BACKBONES
@pytest.mark.parametrize("names", [("id",), ("text",), ("id", "aligned"), ALL])
@torch.no_grad()
def test_evaluation_uses_the_vectors_of_training(names: tuple[ExpertName, ...], backbone: str) -> None:
    model = make(*names, backbone={"kind": backbone})
    users, items = model(batch(), rows()).mixture()
    torch.testing.assert_close(model.encode(batch().inputs, batch().lengths, rows()), users[[1, 4]])
    torch.testing.assert_close(model.catalogue(rows()), items)


@torch.no_grad()
def test_ungated_blocks_are_the_experts_own_item_vectors() -> None:
    model = make(*ALL)
    output = model(batch(), rows())
    own = model.split_by_expert(model.catalogue(rows(), gated=False))
    assert list(own) == list(output.items) == list(ALL)
    for name in ALL:
        torch.testing.assert_close(own[name], output.items[name])


def test_a_gate_weighs_several_experts() -> None:
    assert make("aligned").gate is None
    assert make(*ALL).gate is not None
    gate = make("aligned", "text", mixture=DisentangleConfig(gate_init="ramps")).gate
    assert gate is not None and gate.logits[[0, 10]].tolist() == [[-4, 0], [-5, 1]]


@torch.no_grad()
def test_a_mixture_of_log_probabilities_takes_each_expert_s_partition_away() -> None:
    model = make(*ALL, mixture=DisentangleConfig(mix="log_probabilities")).double()
    assert model.gate is not None and model.gate.log_scale is not None
    model.gate.log_scale.fill_(0.3)
    torch.nn.init.normal_(model.gate.logits)
    output = model(batch(), rows())
    partitions = torch.randn(5, len(ALL), dtype=torch.float64)
    users, items = output.mixture(partitions)
    assert output.gate is not None
    torch.testing.assert_close(output.gate.sum(1), torch.full((ITEMS,), 0.3, dtype=torch.float64).exp())
    logits = [output.users[n] @ output.items[n].T - partitions[:, m : m + 1] for m, n in enumerate(ALL)]
    torch.testing.assert_close(users @ items.T, sum(output.gate[:, m] * scores for m, scores in enumerate(logits)))
    torch.testing.assert_close(model.catalogue(rows()), items)
    encoded = model.encode(batch().inputs, batch().lengths, rows())
    torch.testing.assert_close(mixture_users(encoded, partitions[[1, 4]], lifts=False), users[[1, 4]])


@pytest.mark.parametrize("mix", ["logits", "log_probabilities"])
@torch.no_grad()
def test_a_smooth_gate_weighs_experts_by_the_item_s_frequency_and_lifts_rare_items(mix: str) -> None:
    log_mix = mix == "log_probabilities"
    model = make(*ALL, mixture=DisentangleConfig.model_validate({"gate": "smooth", "mix": mix})).double()
    gate = model.gate
    assert isinstance(gate, SmoothGate)
    for parameter in gate.parameters():
        torch.nn.init.normal_(parameter)
    output = model(batch(), rows())
    partitions = torch.randn(5, len(ALL), dtype=torch.float64) if log_mix else None
    users, items = output.mixture(partitions)
    for item, frequency in enumerate(rows()["frequency"].tolist()):
        rarity = 1 / (1 + math.log(1 + frequency))
        odds = (gate.level + gate.slope * rarity).exp()
        scores = torch.stack([output.users[name] @ output.items[name][item] for name in ALL], dim=1)
        scores = scores if partitions is None else scores - partitions
        torch.testing.assert_close(users @ items[item], scores @ (odds / odds.sum()) + gate.lift * rarity)
    torch.testing.assert_close(model.catalogue(rows()), items)
    encoded = model.encode(batch().inputs, batch().lengths, rows())
    again = mixture_users(encoded, None if partitions is None else partitions[[1, 4]], model.lifts)
    torch.testing.assert_close(again, users[[1, 4]])
    experts = 3 * DIM + TEXT_DIM
    assert items.shape[1] == experts + model.extra_columns == experts + 1 + len(ALL) * log_mix


@torch.no_grad()
def test_only_scored_positions_give_user_vectors() -> None:
    model = make(*ALL)
    every = model(batch(), rows()).users
    some = model(replace(batch(), scored=torch.tensor([1, 4])), rows()).users
    for name in ALL:
        torch.testing.assert_close(some[name], every[name][[1, 4]])


@pytest.mark.parametrize("names", [("aligned", "text"), ALL])
@torch.no_grad()
def test_without_a_gate_all_experts_count_alike(names: tuple[ExpertName, ...]) -> None:
    model = make(*names, mixture=DisentangleConfig(gate="none")).double()
    assert not [name for name, _ in model.named_parameters() if "gate" in name]
    output = model(batch(), rows())
    users, items = output.mixture()
    scores = torch.stack([output.users[name] @ output.items[name].T for name in names])
    torch.testing.assert_close(users @ items.T, scores.mean(0))
    torch.testing.assert_close(model.catalogue(rows()), items)


def test_experts_keep_one_order_however_they_are_named() -> None:
    assert make("text", "id").names == ("id", "text")


@torch.no_grad()
def test_id_dropout_leaves_the_text_alone_in_training() -> None:
    model = make("aligned", dropout=0.0, aligned={"fusion": "sum", "id_dropout": 0.5})
    expert = cast(AlignedExpert, model.expert("aligned"))
    text, anchor = torch.randn(2, 400, DIM)
    torch.testing.assert_close(expert.fuse(text, anchor), text + anchor)
    fused = expert.train().fuse(text, anchor)
    dropped = (fused == text).all(1)
    assert 150 < dropped.sum() < 250
    torch.testing.assert_close(fused[~dropped], (text + anchor)[~dropped])


@torch.no_grad()
def test_fusion_sum_adds_text_to_the_anchor() -> None:
    model = make("aligned")
    output = model(batch(), rows())
    assert output.projected is not None and output.anchored is not None
    torch.testing.assert_close(output.anchored, rows()["aligned"])
    torch.testing.assert_close(output.items["aligned"], output.projected + output.anchored)


@pytest.mark.parametrize("activation", [False, True])
@torch.no_grad()
def test_projector_activation_bends_the_last_layer(activation: bool) -> None:
    model = make("text", projector={"activation": activation})
    vectors = model.catalogue({"text": 10 * rows()["text"]})
    assert bool(vectors.min() < -0.17) is not activation  # the least value of GELU


@BACKBONES
@torch.no_grad()
def test_bf16_weights_take_fp32_rows(backbone: str) -> None:
    model = make(*ALL, backbone={"kind": backbone}).bfloat16()
    assert model(batch(), rows()).mixture()[0].dtype == torch.bfloat16


@BACKBONES
@torch.no_grad()
def test_weights_start_xavier_normal_and_biases_at_zero(backbone: str) -> None:
    model = make("text", dim=128, max_length=20, backbone={"kind": backbone})
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.GRU)]
    weights = [p for layer in layers for p in layer.parameters()]
    assert len(weights) == sum(1 for p in model.parameters()) - 2 * sum(
        isinstance(m, nn.LayerNorm) for m in model.modules()
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
    positions = {"positions": "end"} if backbone in ("sasrec", "ligr") else {}
    model = make(*ALL, backbone={"kind": backbone} | positions, aligned={"fusion": "concat"})
    users, items = model(batch(), rows()).mixture()
    (users @ items.T).square().sum().backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@torch.no_grad()
def test_gate_rows_sum_to_one_and_favour_text_on_rare_items() -> None:
    weights: Tensor = Gate(ALL, "ramps")({"bin": torch.arange(BINS)})[0]
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(BINS))
    assert weights[1, 0] > weights[1, 2]
    assert weights[10, 2] > weights[10, 0]
