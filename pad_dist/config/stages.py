"""Sections of the training stages."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from pad_dist.config.alignments import AlignmentConfig, MkMmdConfig
from pad_dist.config.base import Section
from pad_dist.config.experts import EXPERTS, ExpertName

StageName = Literal["pretrain", "pretrain_text", "align", "disentangle"]
GateName = Literal["frequency", "smooth"]


class StageConfig(Section):
    """How one stage is trained (docs/method.md, "Phase 1: pre-train")."""

    epochs: int = Field(100, ge=0)
    """Largest number of epochs that the stage trains."""
    patience: int = Field(20, ge=1)
    """Number of epochs without a better validation hr@10 after which the stage ends."""
    lr: float = Field(1e-3, gt=0)
    """Learning rate of the dense weights (AdamW)."""
    sparse_lr: float = Field(0.1, gt=0)
    """Learning rate of the ID tables (`sparse.optimizer`)."""
    weight_decay: float = Field(0.1, ge=0)
    """Decoupled weight decay of the dense weights, and of the ID tables if `sparse.optimizer=adamw`."""
    warmup_steps: int = Field(0, ge=0)
    """Number of steps in which the learning rates grow linearly from 0 to their values; 0 has no warm-up."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout rate in this stage. null takes `model.dropout`."""
    ema_decay: float = Field(0.0, ge=0, lt=1)
    """Decay per epoch of an exponential moving average (EMA) of the weights, which validation then scores and the stage
    keeps. It needs a copy of the trained tables in host memory. 0 keeps the weights as they are."""


class AlignConfig(StageConfig):
    """Phase 2: alignment anchored by the recommendation loss (docs/method.md, "Phase 2: align")."""

    anchor: bool = True
    """Learn from the recommendation loss too. false learns from the alignment loss alone, and backbone and fusion stay
    as they are."""
    alignment: AlignmentConfig = MkMmdConfig()
    """Loss that brings projected texts and rows of the aligned table together."""
    gamma: float = Field(0.2, ge=0)
    """Weight of the alignment loss; 0 leaves it out."""
    item_share: float = Field(1.0, gt=0, le=1)
    """Share of items, drawn anew in each step, that enter the alignment loss; the paper takes all (1). Padding keeps
    the same share of its occurrences."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (self.anchor or self.gamma):
            raise ValueError("anchor=false and gamma=0 leave nothing to learn from: set one of them")
        return self


class DisentangleConfig(StageConfig):
    """Phase 3: frequency-gated mixture of experts (docs/method.md, "Phase 3: disentangle")."""

    experts: tuple[ExpertName, ...] = Field(("id", "aligned", "text"), min_length=2)
    """Experts that are mixed. The paper's are id, aligned and text; item_knn is ours (see `model.item_knn`)."""
    gate: GateName | Literal["none"] = "frequency"
    """What the weights of the experts depend on. `frequency`: the item's frequency bin (the paper's). `smooth`: the
    item's train frequency itself; this gate also adds to the scores of rare items. `none`: all experts weigh alike."""
    gate_init: Literal["ramps", "even"] = "even"
    """First logits of `disentangle.gate=frequency`: the paper's `ramps`, which all but close the aligned expert, or
    zeros (`even`)."""
    trained_text: bool = False
    """Train the text expert in a stage of its own first (`pretrain_text`) and start from it. The paper's text expert
    starts at random."""
    freeze: tuple[ExpertName, ...] = ()
    """Experts whose weights stay as they are; text needs `disentangle.trained_text=true`. The paper freezes none. With
    all of them frozen only the gate learns."""
    expert_loss: float = Field(0.0, ge=0)
    """Weight of an auxiliary loss: the recommendation loss of each trained expert alone. The paper has none (0)."""
    mix: Literal["logits", "log_probabilities"] = "logits"
    """What is mixed: the experts' `logits` (the paper's), or their `log_probabilities` over the catalogue, so that an
    expert with higher logits for a user does not weigh more."""
    targets: Literal["train", "valid"] = "train"
    """Targets that the stage learns from. `train`: those of training (the paper's). `valid`: the validation targets,
    which no expert has seen; needs all experts frozen. On train targets an expert that has overfitted looks best."""
    loss: Literal["recommendation", "ndcg"] = "recommendation"
    """Loss of the mixture. `recommendation`: that of `training.loss` (the paper's). `ndcg`: a smooth ndcg of the target
    among the negatives (ApproxNDCG), which is near the metric and does not depend on the scale of the scores."""
    ndcg_temperature: float = Field(0.1, gt=0)
    """Divides the score differences of `disentangle.loss=ndcg`. A lower value is nearer to ndcg, and fewer targets
    contribute."""
    rare_power: float = Field(0.0, ge=0)
    """Exponent of a target's rarity in its weight in `disentangle.loss=ndcg`: `(1 / (1 + ln(1 + f)))^rare_power` at
    train frequency f. 0 gives all targets the same weight."""
    gate_lr: float = Field(1e-2, gt=0)
    """Learning rate of the gate (AdamW)."""
    gate_weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay of the gate (AdamW)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.experts)) < len(self.experts):
            raise ValueError(f"experts={list(self.experts)} names one twice")
        if self.trained_text and "text" not in self.experts:
            raise ValueError(f"trained_text=true, but text is not one of experts={list(self.experts)}")
        if not set(self.freeze) <= set(self.experts):
            raise ValueError(f"freeze={list(self.freeze)} must be some of experts={list(self.experts)}")
        untrainable = [name for name in self.freeze if not EXPERTS[name].is_trained]
        if untrainable:
            raise ValueError(f"{untrainable[0]} has no weights to freeze: leave it out of freeze")
        if "text" in self.freeze and not self.trained_text:
            raise ValueError(
                f"freeze={list(self.freeze)} keeps a text expert that nothing has trained: set trained_text=true, or "
                "leave text out"
            )
        if not self.trained and self.gate == "none":
            raise ValueError(
                f"freeze={list(self.freeze)} is all of the experts that learn, which leaves the gate to learn: that "
                "needs gate=frequency or smooth"
            )
        if self.rare_power and self.loss != "ndcg":
            raise ValueError(f"rare_power={self.rare_power:g} belongs to loss=ndcg: set that, or leave it 0")
        if self.targets == "valid" and self.trained:
            raise ValueError(f"targets=valid is for the gate alone: set freeze={[*self.freeze, *self.trained]}")
        return self

    @property
    def trained(self) -> tuple[ExpertName, ...]:
        """The experts that learn in this stage."""
        return tuple(name for name in self.experts if name not in self.freeze and EXPERTS[name].is_trained)

    @property
    def sums_over_catalogue(self) -> dict[str, str]:
        """Settings that need a sum over the catalogue, estimated from the negatives, each with what does without."""
        needing = {}
        if self.mix == "log_probabilities":
            needing["disentangle.mix=log_probabilities"] = "disentangle.mix=logits"
        if self.loss == "ndcg":
            power = " disentangle.rare_power=0" if self.rare_power else ""
            needing["disentangle.loss=ndcg"] = f"disentangle.loss=recommendation{power}"
        return needing


class RlmrecConConfig(Section):
    """RLMRec-Con: brings rows of the ID table near their texts (arXiv 2310.15950; docs/method.md, "Baselines")."""

    weight: float = Field(0.01, gt=0)
    """Weight of the auxiliary loss; the recommendation loss has weight 1."""
    temperature: float = Field(0.2, gt=0)
    """Divides the similarities of texts and rows; a lower value tells near vectors apart more sharply."""


class RlmrecGenConfig(Section):
    """RLMRec-Gen: guesses texts of masked items from the other items (arXiv 2310.15950; docs/method.md,
    "Baselines")."""

    weight: float = Field(0.1, gt=0)
    """Weight of the auxiliary loss; the recommendation loss has weight 1."""
    temperature: float = Field(0.5, gt=0)
    """Divides the similarities of guessed and true texts; a lower value tells near vectors apart more sharply."""
    mask_share: float = Field(0.15, gt=0, lt=1)
    """Share of items, drawn anew in each step, in whose place the backbone reads a learned token."""


AuxiliaryConfig = AlignConfig | RlmrecConConfig | RlmrecGenConfig
"""Sections of the auxiliary losses, which a stage adds to the recommendation loss or learns from alone."""
