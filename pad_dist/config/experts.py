"""Sections of the experts, with the facts about each that need no tensors; `pad_dist.model.experts` computes them."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from pad_dist.config.base import Section

ExpertName = Literal["id", "aligned", "text", "item_knn"]


class ExpertConfig(Section):
    """Facts about an expert, and its own keys if it has any."""

    has_table: ClassVar[bool] = False
    """Whether the expert has an ID table of its name."""
    reads_text: ClassVar[bool] = False
    """Whether the expert reads text vectors."""
    is_trained: ClassVar[bool] = True
    """Whether the expert has weights to train."""
    model_keys: ClassVar[frozenset[str]] = frozenset({"backbone"})
    """Sections of `model` that the expert reads."""
    gate_ramp: ClassVar[tuple[float, float]]
    """The paper's first gate logits, of bin 0 and of bin 10, with a line between them."""


class IdConfig(ExpertConfig):
    """The ID expert: rows of the ID table."""

    has_table = True
    gate_ramp = (1.0, 0.0)


class AlignedConfig(ExpertConfig):
    """The aligned expert: rows of the aligned table fused with projected texts."""

    has_table = True
    reads_text = True
    model_keys = frozenset({"backbone", "projector", "aligned"})
    gate_ramp = (-4.0, -5.0)

    fusion: Literal["concat", "sum"] = "sum"
    """How row e and projected text t become the item vector. `concat`: `GELU(Linear([e ; t]))`, the paper's form.
    `sum`: e + t."""
    id_dropout: float = Field(0.0, ge=0, lt=1)
    """ID dropout: share of items, drawn anew in each step, whose row is left out, so that the expert learns to read
    rare items from their texts. The paper has none (0)."""


class TextExpertConfig(ExpertConfig):
    """The text expert: projected texts alone."""

    reads_text = True
    model_keys = frozenset({"backbone", "projector"})
    gate_ramp = (0.0, 1.0)


class ItemKnnConfig(ExpertConfig):
    """Item-kNN by content: scores an item by the cosines of its text with those of the user's last items."""

    reads_text = True
    is_trained = False
    model_keys = frozenset({"item_knn"})
    gate_ramp = (0.0, 1.0)  # ours: that of the text expert

    decay: float = Field(0.8, gt=0, le=1)
    """Weight of an item's cosine relative to that of the next item in the history; 1 gives all items the same
    weight."""
    temperature: float = Field(0.1, gt=0)
    """Divides the weighted sum of cosines; a lower value makes the scores of this expert differ more."""


EXPERTS: dict[ExpertName, type[ExpertConfig]] = {
    "id": IdConfig,
    "aligned": AlignedConfig,
    "text": TextExpertConfig,
    "item_knn": ItemKnnConfig,
}
"""All experts, in the order in which a model holds them."""
