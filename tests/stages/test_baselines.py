"""What CTRL and RLMRec learn, against a few lines of plain torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pad_dist.config.load import parse_config
from pad_dist.data.batches import Rows
from pad_dist.distributed.context import DistributedContext
from pad_dist.objectives.alignments.info_nce import info_nce
from pad_dist.objectives.losses.softmax import softmax_sum
from pad_dist.stages.objective import StageObjective
from pad_dist.stages.stage_runtime import build_runtime
from tests.stages.objective_worker import DIM, ITEMS, TEXT_DIM, batch, config, objective, rows
from tests.support.stages import stage_of
from tests.support.tiny_dataset import random_sequences, write_tiny_dataset
from tests.support.tiny_text import write_tiny_text

SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])
SAMPLED = torch.tensor([1, 2, 3, 4, 6, 7, 8])
"""Places of the batch's items that have occurrences."""


def drawn(seed: int) -> Rows:
    """Rows of the batch's items; the seed draws its own texts and mask."""
    generator = torch.Generator().manual_seed(seed)
    masked = torch.rand(ITEMS, generator=generator) < 0.5
    return rows() | {"text": torch.randn(ITEMS, TEXT_DIM, generator=generator), "masked": masked}


def mlp(loss: StageObjective, vectors: Tensor) -> Tensor:
    assert loss.model.head is not None
    first, _, last = loss.model.head.mlp
    hidden = vectors @ first.weight.T + first.bias
    return torch.where(hidden > 0, hidden, 0.01 * hidden) @ last.weight.T + last.bias


def cosines(x: Tensor, y: Tensor) -> Tensor:
    return F.normalize(x, dim=1) @ F.normalize(y, dim=1).T


@SEEDS
def test_rlmrec_con_draws_rows_to_their_texts(seed: int) -> None:
    loss = objective("pretrain", config(method="rlmrec_con", rlmrec_con={"weight": 0.3}))
    given = drawn(seed)
    given["text"][3] = 0  # an item without a text has nothing to be near to
    kept = SAMPLED[SAMPLED != 3]
    output = loss.model(batch(), given)
    logits = cosines(given["id"][kept], mlp(loss, given["text"][kept])) / 0.2
    expected = softmax_sum(output.users["id"], given["id"], batch()) / 6
    expected = expected + 0.3 * F.cross_entropy(logits, torch.arange(len(kept)))
    torch.testing.assert_close(loss(batch(), given), expected)


@SEEDS
def test_rlmrec_gen_guesses_the_texts_of_masked_items_from_the_others(seed: int) -> None:
    loss = objective("pretrain", config(method="rlmrec_gen", rlmrec_gen={"weight": 0.3}))
    given = drawn(seed)
    given["masked"][2] = True  # stands at two positions, so that it is one candidate with two questions
    assert loss.model.head is not None and loss.model.head.mask is not None
    read = torch.where(given["masked"][:, None], loss.model.head.mask.token, given["id"])
    users = loss.model.experts["id"].encoder(read[batch().inputs], batch().lengths)
    asked = given["masked"][batch().inputs]
    places = batch().inputs[asked]
    candidates = places.unique()
    logits = cosines(mlp(loss, users[asked]), given["text"][candidates]) / 0.5
    losses = F.cross_entropy(logits, torch.searchsorted(candidates, places), reduction="none")
    guessed = torch.stack([losses[places == item].mean() for item in candidates]).mean()
    expected = softmax_sum(users, given["id"], batch()) / 6 + 0.3 * guessed
    torch.testing.assert_close(loss(batch(), given), expected)


@pytest.mark.parametrize("masked", [torch.zeros(ITEMS, dtype=torch.bool), torch.ones(ITEMS, dtype=torch.bool)])
def test_a_batch_may_have_no_masked_item_or_nothing_else(masked: Tensor) -> None:
    loss = objective("pretrain", config(method="rlmrec_gen"))
    value = loss(batch(), rows() | {"masked": masked})
    value.backward()
    assert value.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())


@pytest.mark.parametrize("method", ["rlmrec_con", "rlmrec_gen"])
def test_scores_are_those_of_the_id_expert_alone(method: str) -> None:
    model, plain = (objective("pretrain", config(method=name)).model for name in (method, "id"))
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if not name.startswith("head.")})
    histories = (batch().inputs, batch().lengths, rows())
    assert model.encode(*histories).equal(plain.encode(*histories))
    assert model.catalogue(rows()).equal(plain.catalogue(rows()))


@SEEDS
def test_ctrl_first_learns_from_the_fine_grained_alignment_alone(seed: int) -> None:
    alignment = {"kind": "fine_grained", "sub_vectors": 2, "temperature": 0.3}
    settings = config(method="ctrl", align={"alignment": alignment, "gamma": 0, "epochs": 1})
    loss = objective("align", settings)
    given = drawn(seed)
    projected = loss.model.experts["aligned"].projector(given["text"][SAMPLED])
    expected = info_nce(projected, given["aligned"][SAMPLED], torch.ones(7), 0.3, sub_vectors=2)
    value = loss(batch(), given)
    torch.testing.assert_close(value, expected)
    value.backward()
    for name, parameter in loss.model.named_parameters():
        assert parameter.requires_grad is ("projector" in name), name
    assert given["aligned"].grad is not None and given["aligned"].grad[SAMPLED].any(1).all()


def test_clip_aligns_all_items_of_the_batch() -> None:
    clip = objective("align", config(method="clip", align={"alignment": {"kind": "infonce", "temperature": 0.3}}))
    alone = objective("align", config(align={"gamma": 0}))(batch(), rows())
    output = clip.model(batch(), rows())
    assert output.projected is not None and output.anchored is not None
    pairs = (output.projected[SAMPLED], output.anchored[SAMPLED], torch.ones(7))
    torch.testing.assert_close(clip(batch(), rows()), alone + 0.2 * info_nce(*pairs, 0.3))


def test_with_all_experts_frozen_the_gate_alone_learns() -> None:
    freeze = {"trained_text": True, "freeze": ["id", "aligned", "text"], "expert_loss": 1.0}
    loss, given = objective("disentangle", config(disentangle=freeze)), rows()
    loss(batch(), given).backward()
    assert [name for name, p in loss.model.named_parameters() if p.grad is not None] == ["gate.logits"]
    assert given["id"].grad is None and given["aligned"].grad is None


def test_masks_are_a_function_of_step_and_item(tmp_path: Path) -> None:
    dataset = write_tiny_dataset(tmp_path / "dataset", random_sequences(20, 40), 40)
    write_tiny_text(dataset, 8)
    values = {"name": "x", "dataset": dataset, "model": {"dim": DIM}, "sparse": {"backend": "torch"}}
    context = DistributedContext(0, 1, torch.device("cpu"), None)  # type: ignore[arg-type]
    runtime, unmasked = (
        build_runtime(stage_of(parse_config(values | {"method": method}, "x"), "pretrain"), context)
        for method in ("rlmrec_gen", "rlmrec_con")
    )
    items = torch.arange(1, 20_001)
    first, other = (runtime.masked(step, items)["masked"] for step in (3, 4))
    assert first.float().mean().item() == pytest.approx(0.15, abs=0.01) and not first.equal(other)
    assert runtime.masked(3, items[::7])["masked"].equal(first[::7])
    assert unmasked.masked(3, items) == {}


def test_only_items_with_occurrences_are_samples() -> None:
    for method in ("rlmrec_con", "ctrl"):
        loss = objective("align" if method == "ctrl" else "pretrain", config(method=method))
        broken = rows()
        broken["text"][[0, 5]] = torch.nan
        torch.testing.assert_close(loss(batch(), broken), loss(batch(), rows()))
        nothing = replace(batch(), occurrences=torch.zeros(ITEMS))
        assert loss(nothing, rows()).isfinite()
