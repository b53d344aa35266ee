"""Sections of the sequence encoders; `pad_dist.model.backbones` holds the module of each."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pad_dist.config.base import Section, default_kind

Positions = Literal["end", "none"]


class SasRecConfig(Section):
    """SASRec, the paper's causal transformer (docs/method.md, "Backbone")."""

    kind: Literal["sasrec"] = "sasrec"
    """The paper's causal transformer, SASRec."""
    blocks: int = Field(1, ge=1)
    """Number of transformer layers."""
    heads: int = Field(2, ge=1)
    """Number of attention heads in a layer; it must divide `model.dim`."""
    norm: Literal["pre", "post"] = "pre"
    """Whether layer norm comes before (`pre`) or after (`post`, the paper's form) each sublayer."""
    positions: Positions = "none"
    """`end`: learned positions, counted from the last item. `none`: no positions; the causal mask alone tells the
    order."""


class LigrConfig(Section):
    """LiGR, a pre-norm transformer with gated residuals and SwiGLU, as in eSASRec (arXiv 2508.06450; docs/method.md,
    "Backbone")."""

    kind: Literal["ligr"] = "ligr"
    """The transformer of eSASRec, with gated residuals and SwiGLU."""
    blocks: int = Field(1, ge=1)
    """Number of transformer layers."""
    heads: int = Field(2, ge=1)
    """Number of attention heads in a layer; it must divide `model.dim`."""
    positions: Positions = "none"
    """`end`: learned positions, counted from the last item. `none`: no positions; the causal mask alone tells the
    order."""


class Gru4RecConfig(Section):
    """GRU4Rec, a recurrent network (arXiv 1511.06939; docs/method.md, "Backbone")."""

    kind: Literal["gru4rec"] = "gru4rec"
    """The recurrent network of GRU4Rec."""
    layers: int = Field(1, ge=1)
    """Number of GRU layers."""


class CaserConfig(Section):
    """Caser, convolutions over the last items (arXiv 1809.07426; docs/method.md, "Backbone")."""

    kind: Literal["caser"] = "caser"
    """The convolutions of Caser."""
    window: int = Field(5, ge=1)
    """Number of last items that a user vector depends on."""
    horizontal: int = Field(16, ge=1)
    """Number of horizontal filters of each height, from 1 item to the whole window."""
    vertical: int = Field(4, ge=1)
    """Number of vertical filters, each a weighted sum of the vectors in the window."""


BackboneConfig = Annotated[
    SasRecConfig | LigrConfig | Gru4RecConfig | CaserConfig, Field(discriminator="kind"), default_kind("sasrec")
]
