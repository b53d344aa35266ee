"""The dense model of a stage: one expert or several, and the gate that mixes them (docs/method.md, "Phase 3:
disentangle")."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from pad_dist.config import EXPERTS, DisentangleConfig, ExpertName, ModelConfig
from pad_dist.data.batches import Batch, Rows
from pad_dist.model.experts.aligned import AlignedExpert
from pad_dist.model.experts.base import Expert, build_expert
from pad_dist.model.gate import Gate, SmoothGate
from pad_dist.model.heads import Head
from pad_dist.model.initial import initialise

_TABLES = {name for name, facts in EXPERTS.items() if facts.has_table}


@dataclass(frozen=True)
class Output:
    """Vectors of one batch; M experts in the order of `EXPERTS`, together C columns wide.

    Attributes:
        users: per expert [P, D], the user vector at each position; D is the expert's width.
        items: per expert [U, D], the vector of each unique item.
        projected: [U, D] projected text t of the aligned expert, if the model has that expert.
        anchored: [U, D] rows e of the aligned table, likewise.
        gate: [U, M] weights, if the model has several experts.
        lift: [U, 1] added to an item's scores, if the gate gives one.
    """

    users: dict[ExpertName, Tensor]
    items: dict[ExpertName, Tensor]
    projected: Tensor | None
    anchored: Tensor | None
    gate: Tensor | None
    lift: Tensor | None = None

    def mixture(self, log_partitions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Users [P, C] and items [U, C] whose inner product is the mixture's score.

        sum_m g_m <u_m, v_m> = <[u_1 ; u_2 ; u_3], [g_1 v_1 ; g_2 v_2 ; g_3 v_3]>; a single
        expert's weight is 1. With `log_partitions` [P, M] the gate weighs <u_m, v_m> less these,
        which adds M columns to both sides. A lift adds one more.
        """
        users = mixture_users(torch.cat([*self.users.values()], dim=1), log_partitions, self.lift is not None)
        return users, _mix([*self.items.values()], self.gate, self.lift, log_partitions is not None)


class Recommender(nn.Module):
    """The dense model of a stage. It gets the rows of the ID tables as `Rows`.

    Args:
        experts: any of `EXPERTS`; kept in that order.
        model: width, depth and forms.
        text_dim: width of the text vectors; 0 if no expert reads them.
        mixture: how several experts are mixed.
        make_head: makes the head that an auxiliary loss trains with the experts; no score depends on it.

    Dense weights start Xavier-normal and biases at 0 (the paper's); seed with torch.manual_seed.
    """

    def __init__(
        self,
        experts: Sequence[ExpertName],
        model: ModelConfig,
        text_dim: int,
        mixture: DisentangleConfig | None = None,
        make_head: Callable[[], Head | None] = lambda: None,
    ) -> None:
        super().__init__()
        mixture = mixture or DisentangleConfig()
        self.names = tuple(name for name in EXPERTS if name in experts)
        self.experts = nn.ModuleDict({name: build_expert(name, model, text_dim) for name in self.names})
        self.experts.apply(initialise)
        self.log_mix = len(self.names) > 1 and mixture.mix == "log_probabilities"
        self.gate: Gate | SmoothGate | None = None
        if len(self.names) > 1 and mixture.gate == "frequency":
            self.gate = Gate(self.names, mixture.gate_init, self.log_mix)
        elif len(self.names) > 1 and mixture.gate == "smooth":
            self.gate = SmoothGate(len(self.names))
        # Made after the experts, so that their initial weights do not depend on it.
        self.head = make_head()

    def forward(self, batch: Batch, rows: Rows) -> Output:
        """Encode a training batch; `rows` are those of `batch.items`. A mask acts only on items as inputs."""
        rows = self._cast({name: _cut_padding(name, row, batch.items) for name, row in rows.items()})
        projected = anchored = None
        users: dict[ExpertName, Tensor] = {}
        items: dict[ExpertName, Tensor] = {}
        for name in self.names:
            expert = self.expert(name)
            if isinstance(expert, AlignedExpert):
                projected, anchored = expert.sides(rows)
                items[name] = expert.fuse(projected, anchored)
            else:
                items[name] = expert.item_vectors(rows)
            read = items[name]
            if self.head is not None and self.head.mask is not None:
                read = self.head.mask(read, rows["masked"])
            encoded = expert.encoder(read.index_select(0, batch.inputs), batch.lengths)
            users[name] = encoded if batch.scored is None else encoded.index_select(0, batch.scored)
        return Output(users, items, projected, anchored, *self._gate(rows))

    def encode(self, inputs: Tensor, lengths: Tensor, rows: Rows) -> Tensor:
        """User vectors after the last item of each context.

        Args:
            inputs: [P] places in `rows`, contexts end to end, oldest first.
            lengths: [B] items per context, each from 1 to L.
            rows: those of the contexts' unique items.

        Returns:
            [B, C]; `split_by_expert` gives each expert's columns.
        """
        rows = self._cast(rows)
        last = lengths.cumsum(0) - 1
        users = []
        for name in self.names:
            expert = self.expert(name)
            vectors = expert.item_vectors(rows).index_select(0, inputs)
            users.append(expert.encoder(vectors, lengths).index_select(0, last))
        return torch.cat(users, dim=1)

    def catalogue(self, rows: Rows, gated: bool = True) -> Tensor:
        """Item vectors [n, C] to score with `encode`'s user vectors.

        With `gated=False` each expert's columns (`split_by_expert`) give its score alone. Else the vectors also have
        the `extra_columns` of `mixture_users`.
        """
        rows = self._cast(rows)
        vectors = [self.expert(name).item_vectors(rows) for name in self.names]
        return _mix(vectors, *self._gate(rows), self.log_mix) if gated else _mix(vectors, None, None)

    def split_by_expert(self, vectors: Tensor) -> dict[str, Tensor]:
        """[n, C] vectors, experts side by side -> each expert's [n, its D]."""
        widths = [self.expert(name).dim for name in self.names]
        return dict(zip(self.names, vectors.split(widths, dim=1), strict=True))

    @property
    def lifts(self) -> bool:
        """Whether the gate adds to the scores of items."""
        return isinstance(self.gate, SmoothGate)

    @property
    def extra_columns(self) -> int:
        """Columns of the mixture's vectors besides the experts'."""
        return len(self.names) * self.log_mix + self.lifts

    def expert(self, name: ExpertName) -> Expert:
        """The expert of that name."""
        return cast(Expert, self.experts[name])

    def _gate(self, rows: Rows) -> tuple[Tensor | None, Tensor | None]:
        """Weights [U, M] and lifts [U, 1] of the items, if the model has them."""
        if len(self.names) == 1:
            return None, None
        if self.gate is None:
            return next(self.parameters()).new_full((len(rows["bin"]), len(self.names)), 1 / len(self.names)), None
        weights: Tensor
        lift: Tensor | None
        weights, lift = self.gate(rows)
        return weights, lift

    def _cast(self, rows: Rows) -> Rows:
        """Rows in the dtype of the weights: tables stay fp32 when the module is bf16."""
        dtype = next(self.parameters()).dtype
        return {name: row.to(dtype) if row.is_floating_point() else row for name, row in rows.items()}


def _cut_padding(name: str, row: Tensor, items: Tensor) -> Tensor:
    """Block the gradient of item 0 in a trainable table: MK-MMD samples padding, but padding never learns."""
    return torch.where((items == 0).unsqueeze(1), row.detach(), row) if name in _TABLES else row


def mixture_users(users: Tensor, log_partitions: Tensor | None, lifts: bool) -> Tensor:
    """Users [n, C], and log-partitions [n, M] if log-probabilities are mixed -> [n, C + extra_columns].

    sum_m g_m (<u_m, v_m> - z_m) + b = <[u_1 ; ... ; u_M ; -z ; 1], [g_1 v_1 ; ... ; g_M v_M ; g ; b]>: still one
    inner product. `lifts`: whether the gate has a lift b.
    """
    extra = [] if log_partitions is None else [-log_partitions.to(users.dtype)]
    if lifts:
        extra.append(users.new_ones(len(users), 1))
    return torch.cat([users, *extra], dim=1) if extra else users


def _mix(vectors: list[Tensor], gate: Tensor | None, lift: Tensor | None, with_gate: bool = False) -> Tensor:
    if gate is not None:
        vectors = [vector * gate[:, m : m + 1] for m, vector in enumerate(vectors)]
    extra = [column for column in (gate if with_gate else None, lift) if column is not None]
    return torch.cat([*vectors, *extra], dim=1)
