"""The jagged batch: the data of one rank in one training step.

Shape suffixes used in the library: B sequences of this rank, P positions (all
sequences end to end, padding-free), U unique items of the batch, K shared
negatives, L context length, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Rows = dict[str, Tensor]
"""The looked-up values of `Batch.items`: "id" and "aligned" [U, D] (trainable), "text" [U, text_dim], "bin" [U] int64,
"share" [U] of the train interactions, for log-Q correction, "frequency" [U] int32, if a gate reads it, and "masked" [U]
bool, the items that are read as a token, in a training step of RLMRec-Gen."""


@dataclass(frozen=True)
class Batch:
    """One rank's slice of a global batch; items are named by their place in `items`.

    Attributes:
        items: [U] item_index of each unique item, ascending; 0 (padding) may be one.
        lengths: [B] positions per sequence, each at most L.
        inputs: [P] place in `items` of the item read at each position.
        targets: [P] place in `items` of the next item.
        negatives: [P] one per position, or [K] shared by all (`shared_negatives`).
        occurrences: [U] float, this rank's share of how often each item occurs in the GLOBAL
            batch's padded tables of positives and negatives: the sum over ranks is the global
            count (MK-MMD's sample weights).
        positions: [] number of positions in the GLOBAL batch.
        shared_negatives: whether `negatives` is [K].
        scored: None, or the positions [Q] that have a target: then `targets` and all else per position are [Q].
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
        """[U] int64, how often each item occurs in this rank's sequences, not counting the negatives."""
        firsts = self.inputs[(self.lengths.cumsum(0) - self.lengths)]
        return torch.bincount(torch.cat([firsts, self.targets]), minlength=len(self.items))


@dataclass(frozen=True)
class EvalBatch:
    """One rank's users in one evaluation step: those that have a target.

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


@dataclass(frozen=True)
class StepSize:
    """Largest sizes of one rank in one training step, from which buffers are computed.

    Attributes:
        sequences: B.
        positions: P.
        unique: U.
        negatives: K, or one for each position.
    """

    sequences: int
    positions: int
    unique: int
    negatives: int
