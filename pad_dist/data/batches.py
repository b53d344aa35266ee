"""The jagged batch: what one rank takes through one training step.

Shape suffixes used in the library: B sequences of this rank, P positions (all
sequences end to end, padding-free), U unique items of the batch, K shared
negatives, L context length, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Rows = dict[str, Tensor]
"""What was looked up for `Batch.items`, once each: "id" and "aligned" [U, D] (trainable), "text" [U, text_dim],
"bin" [U] int64, "share" [U] of the train interactions, for log-Q correction, "frequency" [U] int32, where a gate reads
it, and, in a training step of RLMRec-Gen, "masked" [U] bool, which items are read as a token."""


@dataclass(frozen=True)
class Batch:
    """One rank's slice of a global batch; items are named by their place in `items`.

    Attributes:
        items: [U] item_index of each unique item, ascending; 0 (padding) may be one.
        lengths: [B] positions per sequence, each at most L.
        inputs: [P] place in `items` of the item read at each position.
        targets: [P] place in `items` of the next item.
        negatives: [P] one per position, or [K] shared by all (`shared_negatives`).
        occurrences: [U] float, how often each item stands in the GLOBAL batch's padded
            tables of positives and negatives, as seen from this rank: summed over ranks
            it is the global count (MK-MMD's sample weights).
        positions: [] number of positions in the GLOBAL batch.
        shared_negatives: whether `negatives` is [K].
        scored: None, or the positions [Q] that have a target: `targets` is then [Q], as is what else has a P.
    """

    items: Tensor
    lengths: Tensor
    inputs: Tensor
    targets: Tensor
    negatives: Tensor
    occurrences: Tensor
    positions: Tensor
    shared_negatives: bool
    scored: Tensor | None = None

    def sightings(self) -> Tensor:
        """[U] int64, how often each item stands in this rank's sequences: their events, not the negatives."""
        firsts = self.inputs[(self.lengths.cumsum(0) - self.lengths)]
        return torch.bincount(torch.cat([firsts, self.targets]), minlength=len(self.items))


@dataclass(frozen=True)
class EvalBatch:
    """One rank's users of one ranking step: those that have a target.

    Attributes:
        items: [U] item_index of each unique item of the contexts, ascending.
        lengths: [B] context length, each from 1 to L.
        inputs: [P] place in `items` of each context item, oldest first.
        targets: [B] item_index of the held-out item.
        history: [H] item_index of all earlier items of each user, end to end.
        history_lengths: [B] earlier items per user.
    """

    items: Tensor
    lengths: Tensor
    inputs: Tensor
    targets: Tensor
    history: Tensor
    history_lengths: Tensor
