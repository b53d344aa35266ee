"""Sections of the recommendation losses; `pad_dist.objectives.losses` holds the class of each.

A section also says how its negatives are drawn, as the loader, the capacity plan and the last stage need to know it.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pad_dist.config.base import Section, default_kind


class NegativeSampling(Section):
    """How the negatives of a global batch are drawn; by default all positions share the whole catalogue."""

    per_position: ClassVar[bool] = False
    """Whether each position has one negative of its own, outside the user's items, instead of shared ones."""
    is_softmax: ClassVar[bool] = False
    """Whether logits mean log-probabilities up to a constant per user, so that experts can be mixed by them."""
    is_sampled: ClassVar[bool] = True
    """Whether negatives are drawn; else every item is one in every step."""

    def uniform(self, catalogue: int) -> int:
        """Shared uniform negatives of a step, from a catalogue of so many items."""
        return catalogue

    @property
    def from_batch(self) -> int:
        """Shared negatives of a step that are drawn from the targets of the global batch."""
        return 0

    @property
    def corrects_log_q(self) -> bool:
        """Whether the loss needs the share that each item has of the train interactions."""
        return False

    def shared(self, catalogue: int) -> int:
        """All shared negatives of a step."""
        return self.uniform(catalogue) + self.from_batch


class SampledSoftmaxConfig(NegativeSampling):
    """Softmax of the target among shared negatives (docs/method.md, "Recommendation losses")."""

    is_softmax = True

    kind: Literal["sampled_softmax"] = "sampled_softmax"
    """Softmax of the target among shared negatives."""
    negatives: int = Field(2048, ge=1)
    """Number of uniform negatives in each step, which all positions of the global batch share."""
    in_batch: int = Field(0, ge=0)
    """Number of further negatives in each step, drawn from the targets of the global batch."""
    log_q: bool = False
    """Log-Q correction: subtract the log of a negative's expected count from its logit, so that the loss estimates the
    full softmax."""

    def uniform(self, catalogue: int) -> int:
        return min(self.negatives, catalogue)

    @property
    def from_batch(self) -> int:
        return self.in_batch

    @property
    def corrects_log_q(self) -> bool:
        return self.log_q


class SoftmaxConfig(NegativeSampling):
    """Softmax of the target among the whole catalogue (docs/method.md, "Recommendation losses")."""

    is_softmax = True
    is_sampled = False

    kind: Literal["softmax"] = "softmax"
    """Softmax of the target among the whole catalogue: each step scores all items, in chunks of bounded memory."""


class GbceConfig(NegativeSampling):
    """gBCE of gSASRec (arXiv 2308.07192; docs/method.md, "Recommendation losses")."""

    kind: Literal["gbce"] = "gbce"
    """Calibrated binary cross-entropy with shared negatives, as in gSASRec."""
    negatives: int = Field(2048, ge=1)
    """Number of uniform negatives in each step, which all positions of the global batch share."""
    t: float = Field(0.75, ge=0, le=1)
    """Calibration: 0 is plain binary cross-entropy, which is overconfident with few negatives; 1 calibrates fully."""

    def uniform(self, catalogue: int) -> int:
        return min(self.negatives, catalogue)


class BceConfig(NegativeSampling):
    """Binary cross-entropy with one negative per position, the paper's (docs/method.md, "Recommendation losses")."""

    per_position = True

    kind: Literal["bce"] = "bce"
    """Binary cross-entropy with one negative per position, outside the user's items: the paper's loss."""


LossConfig = Annotated[
    SampledSoftmaxConfig | SoftmaxConfig | GbceConfig | BceConfig,
    Field(discriminator="kind"),
    default_kind("sampled_softmax"),
]
