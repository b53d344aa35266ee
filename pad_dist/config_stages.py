"""The sections of a run config that say how its stages learn, and the methods that are made of them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from pad_dist.config_data import Section

ExpertName = Literal["id", "aligned", "text", "neighbours"]
StageName = Literal["pretrain", "pretrain_text", "align", "disentangle"]
MethodName = Literal["id", "text", "whitenrec", "llm_init", "clip", "ctrl", "rlmrec_con", "rlmrec_gen", "pad"]
KernelName = Literal["gaussian_mixture", "gaussian", "laplace", "linear", "cosine"]


class StageConfig(Section):
    """One training stage."""

    epochs: int = Field(100, ge=0)
    patience: int = Field(20, ge=1)
    """Stop after this many epochs without a better validation hr@10."""
    lr: float = Field(1e-3, gt=0)
    sparse_lr: float = Field(0.1, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    warmup_steps: int = Field(0, ge=0)
    dropout: float | None = Field(None, ge=0, lt=1)
    """Of this stage's model; null: `model.dropout`."""
    average: float = Field(0.0, ge=0, lt=1)
    """0: the weights are validated and kept as they are. Else a running average of them over the ends of epochs, of
    which each epoch leaves this share; in host memory."""


class AlignConfig(StageConfig):
    """Stage 2: recommendation-anchored alignment."""

    anchor: bool = True
    """Learn from the recommendation loss too; false: from the alignment alone, encoder and fusion stay as they are."""
    alignment: Literal["mk_mmd", "infonce"] = "mk_mmd"
    """What draws texts t and rows e of the aligned table together. `mk_mmd`: their distributions (the paper's);
    `infonce`: the two of one item, apart from those of all others in the batch, as in CLIP."""
    gamma: float = Field(0.2, ge=0)
    """Weight of the alignment; 0 leaves it out."""
    item_share: float = Field(1.0, gt=0, le=1)
    """Share of items, redrawn per step by hash, that enter the alignment, CTRL's too; of padding that share of its
    occurrences; 1 is the paper's."""
    kernel: KernelName = "gaussian_mixture"
    """Of MK-MMD, m being the mean squared distance of all pairs. `gaussian_mixture`: exp(-|x - y|^2 / (2 a m)) summed
    over a = 1/8, 1/4, ..., 2 (the paper's); `gaussian`: a = 1; `laplace`: exp(-|x - y| / sqrt(m)), Euclidean;
    `linear`: <x, y>, which compares means alone; `cosine`: that of L2-normalised vectors."""
    samples: Literal["occurrences", "unique"] = "occurrences"
    """Of MK-MMD: every occurrence in the batch, padding too (the paper's), or each item once, as in InfoNCE."""
    temperature: float = Field(0.07, gt=0)
    """Divides the cosines (infonce)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (self.anchor or self.gamma):
            raise ValueError("anchor=false and gamma=0 leave nothing to learn from: set one of them")
        if self.alignment == "infonce" and (self.kernel != "gaussian_mixture" or self.samples != "occurrences"):
            raise ValueError("kernel and samples belong to alignment=mk_mmd: with infonce leave them out")
        return self


class DisentangleConfig(StageConfig):
    """Stage 3: frequency-gated mixture of experts."""

    experts: tuple[ExpertName, ...] = Field(("id", "aligned", "text"), min_length=2)
    """Which are mixed: the paper's three, or two of them, or with `neighbours`, which scores an item by how near its
    text is to those of the user's last items (see `model.neighbours`) and learns nothing."""
    gate: Literal["frequency", "smooth", "none"] = "frequency"
    """What weighs the experts, by weights that are learned. `frequency`: the item's frequency bin (the paper's).
    `smooth`: the item's frequency itself, by which it also lifts the scores of rare items. `none`: all count alike."""
    trained_text: bool = False
    """Train the text expert alone first, in stage `pretrain_text`, and start from it; the paper's starts at random."""
    freeze: tuple[ExpertName, ...] = ()
    """Experts kept as they come, text only with trained_text; the paper freezes none. All: the gate alone learns."""
    expert_loss: float = Field(0.0, ge=0)
    """Weight of each trained expert's own loss beside the mixture's; the paper's is 0."""
    mix: Literal["logits", "log_probabilities"] = "logits"
    """What of each expert is weighed. `logits`: the paper's. `log_probabilities`: its logit less the log of the sum of
    exponentials over the catalogue, so that experts whose logits lie higher or lower for a user count alike."""
    targets: Literal["train", "valid"] = "train"
    """What the gate learns to rank. `valid`: the validation targets, which the experts, all frozen, have not seen; on
    those of training an expert that has overfitted looks best."""
    loss: Literal["recommendation", "ndcg"] = "recommendation"
    """What the mixture learns from: `training.loss` (the paper's), or a smooth ndcg of the target among the negatives
    (ApproxNDCG), close to what a gate is chosen by (that leaves the user's own items out, this does not); it asks
    little of the scores' scale."""
    ndcg_temperature: float = Field(0.1, gt=0)
    """Divides the differences of scores (ndcg): the lower, the nearer to ndcg and the fewer targets teach."""
    rare_power: float = Field(0.0, ge=0)
    """Count a target that stands f times in training (1 / (1 + ln(1 + f))) ** rare_power times (ndcg): the higher, the
    more the gate learns from rare ones; 0 counts all alike."""
    gate_lr: float = Field(1e-2, gt=0)
    gate_weight_decay: float = Field(0.01, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.experts)) < len(self.experts):
            raise ValueError(f"experts={list(self.experts)} names one twice")
        if self.trained_text and "text" not in self.experts:
            raise ValueError(f"trained_text=true, but text is not one of experts={list(self.experts)}")
        if not set(self.freeze) <= set(self.experts):
            raise ValueError(f"freeze={list(self.freeze)} must be some of experts={list(self.experts)}")
        if "neighbours" in self.freeze:
            raise ValueError("neighbours has no weights to freeze: leave it out of freeze")
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
        return tuple(name for name in self.experts if name not in (*self.freeze, "neighbours"))


class CtrlConfig(Section):
    """CTRL's first stage, the alignment alone (arXiv 2306.02841)."""

    sub_vectors: int = Field(4, ge=1)
    """Parts of equal width that each vector is cut into; 1 compares whole vectors, as `align.alignment=infonce` does.
    METHOD leaves this and the temperature open; these are ours."""
    temperature: float = Field(0.07, gt=0)
    """Divides the similarities."""


class RlmrecConConfig(Section):
    """RLMRec-Con's loss beside the recommendation loss: rows of the ID table near their texts (arXiv 2310.15950)."""

    weight: float = Field(0.01, gt=0)
    temperature: float = Field(0.2, gt=0)
    """Divides the cosines."""


class RlmrecGenConfig(Section):
    """RLMRec-Gen's: texts of masked items from what the encoder makes of the others (arXiv 2310.15950)."""

    weight: float = Field(0.1, gt=0)
    temperature: float = Field(0.5, gt=0)
    """Divides the cosines."""
    mask_share: float = Field(0.15, gt=0, lt=1)
    """Share of items, redrawn per step by hash, whose vectors the encoder reads as a learned token."""
