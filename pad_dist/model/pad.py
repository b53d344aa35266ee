"""PAD's dense part: any of the experts, and the gate where several are mixed (METHOD, phase 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from pad_dist.config import ExpertName, ModelConfig
from pad_dist.data.batches import Batch, Rows
from pad_dist.model.experts import AlignedExpert, Expert, build_expert
from pad_dist.model.gate import Gate, GateName, SmoothGate
from pad_dist.model.heads import Head, HeadName

EXPERTS: tuple[ExpertName, ...] = ("id", "aligned", "text", "neighbours")


@dataclass(frozen=True)
class Output:
    """What one batch becomes; M experts in the order of `EXPERTS`, all together C columns wide.

    Attributes:
        users: per expert [P, D], the user vector at each position; D is the expert's own.
        items: per expert [U, D], the vector of each unique item.
        projected: [U, D] projected text t of the aligned expert, if it is there.
        anchored: [U, D] aligned-table rows e, likewise.
        gate: [U, M] weights, if there are several experts.
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
        expert's weight is 1. With `log_partitions` [P, M] what is weighed is <u_m, v_m> less
        these: M columns more on either side. A lift is one more.
        """
        users = mixture_users(torch.cat([*self.users.values()], dim=1), log_partitions, self.lift is not None)
        return users, _mix([*self.items.values()], self.gate, self.lift, log_partitions is not None)


class Pad(nn.Module):
    """The dense module of a stage. The ID tables live outside and arrive as `Rows`.

    Args:
        experts: any of `EXPERTS`; kept in that order.
        config: width, depth and forms.
        text_dim: width of the text embeddings; unused by the ID expert.
        gate: what weighs several experts; None: all count alike.
        log_mix: whether a mixture weighs log-probabilities (`mixture_users`) instead of logits.
        head: what is learned with beside them, if anything; it takes no part in any score.

    Dense weights start Xavier-normal and biases at 0 (paper); seed with torch.manual_seed.
    """

    def __init__(
        self,
        experts: Sequence[ExpertName],
        config: ModelConfig,
        text_dim: int,
        gate: GateName | None = "frequency",
        log_mix: bool = False,
        head: HeadName | None = None,
    ) -> None:
        super().__init__()
        self.names = tuple(name for name in EXPERTS if name in experts)
        self.experts = nn.ModuleDict({name: build_expert(name, config, text_dim) for name in self.names})
        self.experts.apply(_initialise)
        self.gate: Gate | SmoothGate | None = None
        if gate and len(self.names) > 1:
            by_bin = gate == "frequency"
            self.gate = Gate(self.names, config.gate_init, log_mix) if by_bin else SmoothGate(len(self.names))
        self.log_mix = log_mix
        self.head = Head(head, config, text_dim) if head else None
        if self.head is not None:
            self.head.apply(_initialise)

    def forward(self, batch: Batch, rows: Rows) -> Output:
        """Encode a training batch; `rows` are those of `batch.items`. A mask acts where items are read."""
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
            [B, C]; `own_columns` has each expert's.
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
        """Item vectors [n, C] to rank with `encode`'s user vectors.

        With `gated=False` the `own_columns` of an expert rank for it alone. Else there are the `extra_columns` of
        `mixture_users`.
        """
        rows = self._cast(rows)
        vectors = [self.expert(name).item_vectors(rows) for name in self.names]
        return _mix(vectors, *self._gate(rows), self.log_mix) if gated else _mix(vectors, None, None)

    def own_columns(self, vectors: Tensor) -> dict[str, Tensor]:
        """[n, C] vectors, experts side by side -> each expert's [n, its D]."""
        widths = [self.expert(name).dim for name in self.names]
        return dict(zip(self.names, vectors.split(widths, dim=1), strict=True))

    @property
    def lifts(self) -> bool:
        """Whether the gate adds to the scores of items."""
        return isinstance(self.gate, SmoothGate)

    @property
    def extra_columns(self) -> int:
        """Columns of the mixture's vectors beside the experts'."""
        return len(self.names) * self.log_mix + self.lifts

    def expert(self, name: ExpertName) -> Expert:
        """The expert of that name."""
        return cast(Expert, self.experts[name])

    def _gate(self, rows: Rows) -> tuple[Tensor | None, Tensor | None]:
        """Weights [U, M] and lifts [U, 1] of the items, where there are any."""
        if len(self.names) == 1:
            return None, None
        if self.gate is None:
            return next(self.parameters()).new_full((len(rows["bin"]), len(self.names)), 1 / len(self.names)), None
        found: tuple[Tensor, Tensor | None] = self.gate(rows)
        return found

    def _cast(self, rows: Rows) -> Rows:
        """Rows in the dtype of the weights: the tables stay fp32 under a bf16 module."""
        dtype = next(self.parameters()).dtype
        return {name: row.to(dtype) if row.is_floating_point() else row for name, row in rows.items()}


def _cut_padding(name: str, row: Tensor, items: Tensor) -> Tensor:
    """Let no gradient reach item 0 in a trainable table: MK-MMD samples padding, but padding never learns."""
    return torch.where((items == 0).unsqueeze(1), row.detach(), row) if name in ("id", "aligned") else row


def mixture_users(users: Tensor, log_partitions: Tensor | None, lifts: bool) -> Tensor:
    """Users [n, C], and log-partitions [n, M] where log-probabilities are weighed -> [n, C + extra_columns].

    sum_m g_m (<u_m, v_m> - z_m) + b = <[u_1 ; ... ; u_M ; -z ; 1], [g_1 v_1 ; ... ; g_M v_M ; g ; b]>: one inner
    product still. `lifts`: whether there is a b.
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


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding | nn.Conv1d | nn.GRU):
        for weight in module.parameters():
            if weight.dim() > 1:
                nn.init.xavier_normal_(weight)
            else:
                nn.init.zeros_(weight)
