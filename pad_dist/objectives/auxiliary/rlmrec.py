"""The two auxiliary losses of RLMRec (arXiv 2310.15950; docs/method.md, "Baselines")."""

from __future__ import annotations

import torch
from torch import Tensor

from pad_dist.config import ModelConfig, RlmrecConConfig, RlmrecGenConfig
from pad_dist.data.batches import Batch, Rows, StepSize
from pad_dist.data.hashing import MASKED_ITEM, hash_share
from pad_dist.model.heads import Head
from pad_dist.model.recommender import Output
from pad_dist.objectives.alignments.info_nce import contrast
from pad_dist.objectives.auxiliary.base import AUXILIARY_LOSSES, AuxiliaryLoss
from pad_dist.objectives.samples import once


@AUXILIARY_LOSSES.register(RlmrecConConfig)
class RlmrecCon(AuxiliaryLoss):
    """Matches each item's row with its text among the projected texts of the batch's items."""

    def __call__(self, output: Output, batch: Batch, rows: Rows, head: Head | None) -> Tensor:
        assert head is not None
        vectors, text = output.items["id"], rows["text"]
        sampled = (batch.occurrences > 0) & (batch.items > 0) & vectors.any(1) & text.any(1)
        weights = once(batch.items[sampled], self._group)
        projected = head(text[sampled].to(vectors.dtype))
        loss = contrast(vectors[sampled], projected, weights, self._config.temperature, self._group)
        weighted: Tensor = self._config.weight * loss
        return weighted

    @classmethod
    def make_head(cls, model: ModelConfig, text_dim: int) -> Head:
        """From texts to the model's width."""
        return Head(text_dim, model.dim)

    @classmethod
    def head_values(cls, model: ModelConfig, text_dim: int, step: StepSize) -> int:
        """Input, hidden values and output of the head, for every item."""
        return step.unique * 2 * (text_dim + model.dim)

    @classmethod
    def samples(cls, config: RlmrecConConfig, model: ModelConfig, text_dim: int, step: StepSize) -> tuple[int, int]:
        return step.unique, model.dim


@AUXILIARY_LOSSES.register(RlmrecGenConfig)
class RlmrecGen(AuxiliaryLoss):
    """Matches the encoder's output at each masked position with a text among those of the masked items."""

    def __call__(self, output: Output, batch: Batch, rows: Rows, head: Head | None) -> Tensor:
        assert head is not None
        asked = (rows["masked"] & rows["text"].any(1))[batch.inputs]
        items = batch.inputs[asked]
        # An item masked at several positions is one candidate, and its questions together count as one.
        weights = once(batch.items[items], self._group)
        guessed = head(output.users["id"][asked])
        loss = contrast(guessed, rows["text"][items], weights, self._config.temperature, self._group)
        weighted: Tensor = self._config.weight * loss
        return weighted

    def masked(self, seed: int, step: int, items: Tensor) -> Tensor:
        """A hash of (seed, step, item) decides."""
        return torch.from_numpy(hash_share(self._config.mask_share, seed, MASKED_ITEM, step, items.numpy()))

    @classmethod
    def make_head(cls, model: ModelConfig, text_dim: int) -> Head:
        """From user vectors to texts, with the mask token."""
        return Head(model.dim, text_dim, mask_dim=model.dim)

    @classmethod
    def head_values(cls, model: ModelConfig, text_dim: int, step: StepSize) -> int:
        """Input, hidden values and output of the head, for every position."""
        return step.positions * 2 * (text_dim + model.dim)

    @classmethod
    def samples(cls, config: RlmrecGenConfig, model: ModelConfig, text_dim: int, step: StepSize) -> tuple[int, int]:
        # The share is one of all items; every item of a batch may be in it.
        return step.positions, text_dim
