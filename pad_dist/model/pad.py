"""PAD's dense part: any of the three experts, and the gate where several are mixed (METHOD, phase 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from pad_dist.config import ExpertName, ModelConfig
from pad_dist.data.batches import Batch, Rows
from pad_dist.model.experts import AlignedExpert, Expert, build_expert
from pad_dist.model.gate import Gate
from pad_dist.model.heads import Head, HeadName

EXPERTS: tuple[ExpertName, ...] = ("id", "aligned", "text")


@dataclass(frozen=True)
class Output:
    """What one batch becomes; M experts in the order id, aligned, text.

    Attributes:
        users: per expert [P, D], the user vector at each position.
        items: per expert [U, D], the vector of each unique item.
        projected: [U, D] projected text t of the aligned expert, if it is there.
        anchored: [U, D] aligned-table rows e, likewise.
        gate: [U, M] weights, if there are several experts.
    """

    users: dict[ExpertName, Tensor]
    items: dict[ExpertName, Tensor]
    projected: Tensor | None
    anchored: Tensor | None
    gate: Tensor | None

    def mixture(self) -> tuple[Tensor, Tensor]:
        """Users [P, M*D] and items [U, M*D] whose inner product is the mixture's score.

        sum_m g_m <u_m, v_m> = <[u_1 ; u_2 ; u_3], [g_1 v_1 ; g_2 v_2 ; g_3 v_3]>; a single
        expert's weight is 1.
        """
        return torch.cat([*self.users.values()], dim=1), _mix([*self.items.values()], self.gate)


class Pad(nn.Module):
    """The dense module of a stage. The ID tables live outside and arrive as `Rows`.

    Args:
        experts: any of id, aligned, text; kept in that order.
        config: width, depth and forms.
        text_dim: width of the text embeddings; unused by the ID expert.
        gated: whether several experts are weighed by a gate; else all count alike.
        head: what is learned with beside them, if anything; it takes no part in any score.

    Dense weights start Xavier-normal and biases at 0 (paper); seed with torch.manual_seed.
    """

    def __init__(
        self,
        experts: Sequence[ExpertName],
        config: ModelConfig,
        text_dim: int,
        gated: bool = True,
        head: HeadName | None = None,
    ) -> None:
        super().__init__()
        self.names = tuple(name for name in EXPERTS if name in experts)
        self.experts = nn.ModuleDict({name: build_expert(name, config, text_dim) for name in self.names})
        self.experts.apply(_initialise)
        self.gate = Gate(self.names, config.gate_init) if gated and len(self.names) > 1 else None
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
            users[name] = expert.encoder(read.index_select(0, batch.inputs), batch.lengths)
        return Output(users, items, projected, anchored, self._gate(rows))

    def encode(self, inputs: Tensor, lengths: Tensor, rows: Rows) -> Tensor:
        """User vectors after the last item of each context.

        Args:
            inputs: [P] places in `rows`, contexts end to end, oldest first.
            lengths: [B] items per context, each from 1 to L.
            rows: those of the contexts' unique items.

        Returns:
            [B, M*D]; expert m's own vector is the m-th block of D columns.
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
        """Item vectors [n, M*D] to rank with `encode`'s user vectors.

        With `gated=False` the m-th block of D columns ranks for expert m alone.
        """
        rows = self._cast(rows)
        vectors = [self.expert(name).item_vectors(rows) for name in self.names]
        return _mix(vectors, self._gate(rows) if gated else None)

    def expert(self, name: ExpertName) -> Expert:
        """The expert of that name."""
        return cast(Expert, self.experts[name])

    def _gate(self, rows: Rows) -> Tensor | None:
        if len(self.names) == 1:
            return None
        if self.gate is None:
            return next(self.parameters()).new_full((len(rows["bin"]), len(self.names)), 1 / len(self.names))
        weights: Tensor = self.gate(rows["bin"])
        return weights

    def _cast(self, rows: Rows) -> Rows:
        """Rows in the dtype of the weights: the tables stay fp32 under a bf16 module."""
        dtype = next(self.parameters()).dtype
        return {name: row.to(dtype) if row.is_floating_point() else row for name, row in rows.items()}


def _cut_padding(name: str, row: Tensor, items: Tensor) -> Tensor:
    """Let no gradient reach item 0 in a trainable table: MK-MMD samples padding, but padding never learns."""
    return torch.where((items == 0).unsqueeze(1), row.detach(), row) if name in ("id", "aligned") else row


def _mix(vectors: list[Tensor], gate: Tensor | None) -> Tensor:
    if gate is not None:
        vectors = [vector * gate[:, m : m + 1] for m, vector in enumerate(vectors)]
    return torch.cat(vectors, dim=1)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding | nn.Conv1d | nn.GRU):
        for weight in module.parameters():
            if weight.dim() > 1:
                nn.init.xavier_normal_(weight)
            else:
                nn.init.zeros_(weight)
