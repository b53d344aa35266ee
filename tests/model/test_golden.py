"""Equality with the authors' implementation on a tiny model (arXiv 2412.04107), to 1e-5 relative."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pad_dist.config import DisentangleConfig, ExpertName, ModelConfig
from pad_dist.data.batches import Batch, Rows
from pad_dist.model.recommender import Output, Recommender
from pad_dist.objectives.alignments.mk_mmd import mk_mmd
from pad_dist.objectives.losses.bce import bce_sum

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIG = ModelConfig.model_validate(
    {
        "dim": 16,
        "max_length": 6,
        "dropout": 0.1,
        "backbone": {"kind": "sasrec", "blocks": 2, "heads": 2, "norm": "post", "positions": "end"},
        "projector": {"layers": 4, "activation": True},
        "aligned": {"fusion": "concat"},
    }
)
MIXTURE = DisentangleConfig(gate_init="ramps")
GAMMA = 0.2
THREE: tuple[ExpertName, ...] = ("id", "aligned", "text")
TABLES = {"id": "id_embedding.weight", "aligned": "other_embedding.weight"}
RENAMES = {
    "user_encoder.transformer_encoder": "experts.id.encoder",
    "user_enc_2.transformer_encoder": "experts.aligned.encoder",
    "user_enc_3.transformer_encoder": "experts.text.encoder",
    "transformer_blocks": "blocks",
    "position_embedding": "positions",
    "multi_head_attention.layer_norm": "attention_norm",
    "multi_head_attention.w_Q": "attention.query",
    "multi_head_attention.w_K": "attention.key",
    "multi_head_attention.w_V": "attention.value",
    "multi_head_attention.fc": "attention.out",
    "feed_forward.layer_norm": "feed_forward_norm",
    "feed_forward.w_1": "feed_forward.0",
    "feed_forward.w_2": "feed_forward.2",
    "layer_norm": "norm",
    "turn_dim1.fc": "experts.aligned.projector.0",
    "turn_dim3.fc": "experts.text.projector.0",
    **{f"turn_dim1.mlp_layers.mlp_layers.{i}.": f"experts.aligned.projector.{i + 2}." for i in (1, 4, 7, 10)},
    **{f"turn_dim3.mlp_layers.mlp_layers.{i}.": f"experts.text.projector.{i + 2}." for i in (1, 4, 7, 10)},
    "fc.mlp_layers": "experts.aligned.fusion",
}


def our_name(theirs: str) -> str:
    for old, new in RENAMES.items():
        theirs = theirs.replace(old, new)
    return theirs


class Golden:
    """One file: its model with the golden weights, its batch, and its arrays by name."""

    def __init__(self, stage: str, experts: tuple[ExpertName, ...]) -> None:
        self.arrays: dict[str, NDArray[np.generic]] = dict(np.load(GOLDEN / f"{stage}.npz"))
        self.experts = experts
        self.model = Recommender(experts, CONFIG, 12, MIXTURE).double().eval()
        known = [name.removeprefix("param/") for name in self.arrays if name.startswith("param/")]
        self.names = {our_name(name): name for name in known if our_name(name) in self.model.state_dict()}
        state = {ours: self.tensor(f"param/{theirs}") for ours, theirs in self.names.items()}
        if self.model.gate:
            logits = [self.tensor(f"param/{name}") for name in ("alpha", "alpha2", "alpha3")]
            torch.testing.assert_close(self.model.gate.logits, torch.stack(logits, 1), rtol=0, atol=1e-6)
            state["gate.logits"] = torch.stack(logits, 1)
        self.model.load_state_dict(state)  # strict: every weight of ours has a golden one
        self.tables = {n: self.tensor(f"param/{TABLES[n]}").requires_grad_() for n in experts if n in TABLES}
        self.batch = self._batch()

    def tensor(self, name: str) -> Tensor:
        tensor = torch.from_numpy(np.asarray(self.arrays[name]))
        return tensor.double() if tensor.is_floating_point() else tensor

    def rows(self, items: Tensor) -> Rows:
        rows = {name: table[items] for name, table in self.tables.items()}
        return rows | {"text": self.tensor("text_table")[items], "bin": self.tensor("item_bin")[items]}

    def run(self) -> tuple[Output, Tensor]:
        output = self.model(self.batch, self.rows(self.batch.items))
        loss = bce_sum(*output.mixture(), self.batch) / self.batch.positions
        if output.projected is not None and output.anchored is not None and self.experts == ("aligned",):
            loss = loss + GAMMA * mk_mmd(output.projected, output.anchored, self.batch.occurrences)
        return output, loss

    def _batch(self) -> Batch:
        positives, negatives = self.tensor("positives"), self.tensor("negatives")
        mask = self.tensor("mask").bool()
        items, counts = torch.cat([positives.flatten(), negatives.flatten()]).unique(return_counts=True)

        def place(table: Tensor) -> Tensor:
            return torch.searchsorted(items, table[mask])

        return Batch(
            items=items,
            lengths=mask.sum(1),
            inputs=place(positives[:, :-1]),
            targets=place(positives[:, 1:]),
            negatives=place(negatives[:, :-1]),
            occurrences=counts.double(),
            positions=mask.sum(),
            shared_negatives=False,
        )


@pytest.fixture(params=["pretrain", "align", "disentangle"])
def golden(request: pytest.FixtureRequest) -> Golden:
    experts: dict[str, tuple[ExpertName, ...]] = {"pretrain": ("id",), "align": ("aligned",), "disentangle": THREE}
    return Golden(request.param, experts[request.param])


def assert_equal(ours: Tensor, theirs: Tensor, name: str) -> None:
    """Within 1e-5 of the array's largest value: the golden arrays themselves are fp32 results."""
    error = (ours.double() - theirs).abs().max() / theirs.abs().max()
    assert error < 1e-5, f"{name}: relative error {error:.1e}"


def test_loss(golden: Golden) -> None:
    assert_equal(golden.run()[1].detach(), golden.tensor("loss"), "loss")


def test_every_gradient(golden: Golden) -> None:
    golden.run()[1].backward()
    parameters: dict[str, nn.Parameter] = dict(golden.model.named_parameters())
    ours = {theirs: parameters[name].grad for name, theirs in golden.names.items()}
    ours |= {TABLES[name]: table.grad for name, table in golden.tables.items()}
    if golden.model.gate:
        gate = golden.model.gate.logits.grad
        assert gate is not None
        ours |= {"alpha": gate[:, 0], "alpha2": gate[:, 1], "alpha3": gate[:, 2]}
    assert set(ours) == {name.removeprefix("grad/") for name in golden.arrays if name.startswith("grad/")}
    for name, gradient in ours.items():
        assert gradient is not None, name
        assert_equal(gradient, golden.tensor(f"grad/{name}"), name)


def test_padding_row_of_a_table_gets_no_gradient(golden: Golden) -> None:
    golden.run()[1].backward()
    assert all(table.grad is not None and not table.grad[0].any() for table in golden.tables.values())


@torch.no_grad()
def test_scores_of_the_whole_catalogue(golden: Golden) -> None:
    contexts = golden.tensor("positives")[:, 1:]
    items, inputs = contexts[contexts > 0].unique(return_inverse=True)
    users = golden.model.encode(inputs, (contexts > 0).sum(1), golden.rows(items))
    catalogue = golden.model.catalogue(golden.rows(torch.arange(41)))
    assert_equal(users @ catalogue.T, golden.tensor("scores"), "scores")


@torch.no_grad()
def test_aligned_item_vectors() -> None:
    golden = Golden("align", ("aligned",))
    vectors = golden.model.catalogue(golden.rows(torch.arange(41)))
    assert_equal(vectors, golden.tensor("item_vectors"), "item_vectors")


@torch.no_grad()
def test_gate_weights() -> None:
    golden = Golden("disentangle", THREE)
    assert golden.model.gate
    weights = golden.model.gate({"bin": golden.tensor("item_bin")})[0]
    for m, name in enumerate(("gate_id", "gate_aligned", "gate_text")):
        assert_equal(weights[:, m], golden.tensor(name), name)
