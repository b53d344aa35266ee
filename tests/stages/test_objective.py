"""The loss of each stage, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn.functional import gelu

from pad_dist.config import StageName
from pad_dist.objectives.alignments.info_nce import info_nce
from pad_dist.objectives.alignments.mk_mmd import mk_mmd
from pad_dist.objectives.losses.bce import bce_sum, gbce_beta, gbce_sum
from pad_dist.objectives.losses.softmax import softmax_sum
from pad_dist.objectives.mixture import approx_ndcg_sum
from tests.stages.objective_worker import (
    CATALOGUE,
    DIM,
    ITEMS,
    LOSSES,
    batch,
    config,
    objective,
    rows,
    values,
    variants,
)
from tests.support.ranks import run_ranks
from tests.support.stages import STAGES


def test_bce_takes_its_own_negatives() -> None:
    paired = replace(batch(), negatives=torch.tensor([3, 1, 7, 8, 2, 4]), shared_negatives=False)
    loss = objective("pretrain", config(training={"loss": {"kind": "bce"}}))
    output = loss.model(paired, rows())
    torch.testing.assert_close(loss(paired, rows()), bce_sum(output.users["id"], output.items["id"], paired) / 6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_can_learn_from_every_loss(stage: StageName, loss: str) -> None:
    expected = 3 / CATALOGUE + rows()["share"]  # three negatives are uniform, one is in batch
    sums = {
        "sampled_softmax": softmax_sum,
        "log-Q": partial(softmax_sum, expected=expected),
        "gbce": partial(gbce_sum, beta=gbce_beta(4, CATALOGUE, 0.75)),
        "softmax": softmax_sum,
    }
    module = objective(stage, config(training={"loss": LOSSES[loss]}, align={"gamma": 0}))
    mixture = module.model(batch(), rows()).mixture()  # of one expert, where there is but one
    torch.testing.assert_close(module(batch(), rows()), sums[loss](*mixture, batch()) / 6)


def test_align_adds_gamma_times_the_discrepancy_of_projected_text_and_anchors() -> None:
    loss = objective("align", config(align={"gamma": 0.7}))
    alone = objective("align", config(align={"gamma": 0}))(batch(), rows())
    output = loss.model(batch(), rows())
    assert output.projected is not None and output.anchored is not None
    expected = alone + 0.7 * mk_mmd(output.projected, output.anchored, batch().occurrences)
    assert expected > alone
    torch.testing.assert_close(loss(batch(), rows()), expected)


@pytest.mark.parametrize(
    "alignment", [{"samples": "unique", "kernel": "laplace"}, {"kind": "infonce", "temperature": 0.3}]
)
def test_unique_samples_are_items_once_and_no_padding(alignment: dict[str, object]) -> None:
    loss = objective("align", config(align={"gamma": 0.7, "alignment": alignment}))
    alone = objective("align", config(align={"gamma": 0}))(batch(), rows())
    output = loss.model(batch(), rows())
    assert output.projected is not None and output.anchored is not None
    kept = (batch().occurrences > 0) & (batch().items > 0)
    samples = (output.projected[kept], output.anchored[kept], torch.ones(7))
    expected = info_nce(*samples, temperature=0.3) if "kind" in alignment else mk_mmd(*samples, kernel="laplace")
    torch.testing.assert_close(loss(batch(), rows()), alone + 0.7 * expected)


@pytest.mark.parametrize("fusion", ["sum", "concat"])
def test_without_the_anchor_only_the_alignment_teaches(fusion: str) -> None:
    model = {"dim": DIM, "max_length": 4, "aligned": {"fusion": fusion}, "dropout": 0.0}
    loss = objective("align", config(model=model, align={"gamma": 0.7, "anchor": False}))
    looked_up = rows()
    value = loss(batch(), looked_up)
    output = loss.model(batch(), rows())
    assert output.projected is not None and output.anchored is not None
    torch.testing.assert_close(value, 0.7 * mk_mmd(output.projected, output.anchored, batch().occurrences))
    value.backward()
    for name, parameter in loss.model.named_parameters():
        learns = "projector" in name
        assert parameter.requires_grad is learns and (parameter.grad is not None) is learns, name
    assert looked_up["aligned"].grad is not None and looked_up["aligned"].grad.any()


@pytest.mark.parametrize("power", [0, 0.5, 1])
def test_a_mixture_may_learn_from_ndcg_and_more_from_rare_targets(power: float) -> None:
    settings = config(disentangle={"loss": "ndcg", "ndcg_temperature": 0.4, "gate": "smooth", "rare_power": power})
    loss = objective("disentangle", settings)
    users, items = loss.model(batch(), rows()).mixture()
    rarity = 1 / (1 + (1 + rows()["frequency"][batch().targets]).float().log())
    expected = torch.full((9,), 4 / CATALOGUE)
    total = approx_ndcg_sum(users, items, batch(), expected, 0.4, rarity**power)
    torch.testing.assert_close(loss(batch(), rows()), total / 6)


def test_two_experts_without_a_gate_are_mixed_alike() -> None:
    settings = config(disentangle={"experts": ["text", "id"], "gate": "none"})
    loss = objective("disentangle", settings)
    output = loss.model(batch(), rows())
    assert list(output.users) == ["id", "text"] and loss.model.gate is None
    users = torch.cat([output.users["id"], output.users["text"]], dim=1)
    items = torch.cat([output.items["id"], output.items["text"]], dim=1) / 2
    torch.testing.assert_close(loss(batch(), rows()), softmax_sum(users, items, batch()) / 6)


def test_items_without_occurrences_are_no_samples() -> None:
    # Not even with weight 0: then NaN would spread, and the kernels would be as large as the batch.
    broken = rows()
    broken["text"][batch().occurrences == 0] = torch.nan
    loss = objective("align", config())
    torch.testing.assert_close(loss(batch(), broken), loss(batch(), rows()))


@pytest.mark.parametrize("fusion", ["sum", "concat"])
def test_an_item_without_a_row_is_made_of_its_text_and_is_no_sample(fusion: str) -> None:
    model = {"dim": DIM, "max_length": 4, "dropout": 0.0, "aligned": {"fusion": fusion}}
    lacking = rows()
    lacking["aligned"] = torch.where(torch.arange(ITEMS)[:, None] == 7, 0, lacking["aligned"])
    loss = objective("align", config(model=model, align={"gamma": 0.7}))
    output = loss.model(batch(), lacking)
    assert output.projected is not None and output.anchored is not None
    if fusion == "sum":
        torch.testing.assert_close(output.items["aligned"][7], output.projected[7])
    else:
        own = loss.model.experts["aligned"].fusion[1]
        torch.testing.assert_close(
            output.items["aligned"][7], gelu(output.projected[7] @ own.weight[:, DIM:].T + own.bias)
        )
    others = batch().occurrences * (torch.arange(ITEMS) != 7)
    kept = others > 0
    discrepancy = mk_mmd(output.projected[kept], output.anchored[kept], others[kept])
    alone = objective("align", config(model=model, align={"gamma": 0}))(batch(), lacking)
    torch.testing.assert_close(loss(batch(), lacking), alone + 0.7 * discrepancy)


def test_a_batch_without_samples_or_positions_costs_nothing() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    empty = replace(
        batch(),
        lengths=nothing,
        inputs=nothing,
        targets=nothing,
        occurrences=torch.zeros(9),
        positions=torch.tensor(0),
    )
    for stage in STAGES:
        loss = objective(stage, config())(empty, rows())
        loss.backward()
        assert loss.item() == 0, stage


def test_expert_loss_adds_exactly_the_trained_experts_own_losses() -> None:
    freeze = ["id"]
    alone = objective("disentangle", config(disentangle={"freeze": freeze}))(batch(), rows())
    loss = objective("disentangle", config(disentangle={"freeze": freeze, "expert_loss": 0.5}))
    output = loss.model(batch(), rows())
    own = {name: softmax_sum(output.users[name], output.items[name], batch()) for name in output.users}
    torch.testing.assert_close(loss(batch(), rows()), alone + 0.5 * (own["aligned"] + own["text"]) / 6)


@pytest.mark.parametrize("freeze", [["id"], ["id", "aligned"], ["aligned", "text"]])
def test_frozen_experts_get_no_gradient_and_the_others_do(freeze: list[str]) -> None:
    model = {"dim": 8, "max_length": 4, "dropout": 0.5}
    last = {"freeze": freeze, "trained_text": "text" in freeze, "expert_loss": 1.0}
    loss = objective("disentangle", config(model=model, disentangle=last))
    looked_up = rows()
    loss(batch(), looked_up).backward()
    for name in ("id", "aligned", "text"):
        learns = [p.grad is not None and bool(p.grad.any()) for p in loss.model.experts[name].parameters()]
        assert set(learns) == {name not in freeze}, name
    for table in ("id", "aligned"):
        assert (looked_up[table].grad is None) is (table in freeze), table
    assert loss.model.gate is not None and loss.model.gate.logits.grad is not None


def test_frozen_experts_score_without_dropout_whenever_training_goes_on() -> None:
    model = {"dim": 8, "max_length": 4, "dropout": 0.5}
    loss = objective("disentangle", config(model=model, disentangle={"freeze": ["id", "aligned"]}))
    loss.eval()
    still = loss.model(batch(), rows())
    loss.train()
    one, other = loss.model(batch(), rows()), loss.model(batch(), rows())
    for name in ("id", "aligned"):
        assert one.users[name].equal(still.users[name]) and one.items[name].equal(still.items[name]), name
    assert not one.users["text"].equal(other.users["text"])


@pytest.mark.parametrize("stage", ["pretrain", "align"])
def test_freeze_is_of_the_last_stage_alone(stage: StageName) -> None:
    loss = objective(stage, config(disentangle={"freeze": ["id", "aligned"]}))
    assert all(p.requires_grad for p in loss.parameters())


def test_the_mean_of_the_ranks_values_is_the_loss_of_the_whole_batch() -> None:
    first, second = run_ranks(values, 2)
    for name, stage in first:
        whole = objective(stage, variants()[name])(batch(), rows()).item()
        assert (first[name, stage] + second[name, stage]) / 2 == pytest.approx(whole, rel=1e-5), (name, stage)
        assert first[name, stage] != pytest.approx(whole, rel=1e-2), (name, stage)
