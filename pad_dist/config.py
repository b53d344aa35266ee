"""Run configuration: one typed object, every key documented where it is declared.

Unknown keys are refused, so that a misspelt setting never trains the wrong model
(`pad_dist.config_file` reads YAML and names the nearest valid key). The sections
`data` and `text` are in `pad_dist.config_data`, `model` and `sparse` in `pad_dist.config_model`.
"""

from __future__ import annotations

import os
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pad_dist.config_data import DataConfig, InputFormat, ReduceConfig, Section, SplitConfig, TextConfig
from pad_dist.config_model import CaserConfig, HashedConfig, ModelConfig, SparseConfig

__all__ = [
    "STAGES",
    "AlignConfig",
    "CaserConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DisentangleConfig",
    "EvaluationConfig",
    "ExpertName",
    "HashedConfig",
    "InputFormat",
    "KernelName",
    "LossConfig",
    "ModelConfig",
    "ReduceConfig",
    "SparseConfig",
    "SplitConfig",
    "StageConfig",
    "StageName",
    "TextConfig",
    "TrainingConfig",
]

ExpertName = Literal["id", "aligned", "text"]
StageName = Literal["pretrain", "align", "disentangle"]
KernelName = Literal["gaussian_mixture", "gaussian", "laplace", "linear", "cosine"]
STAGES: tuple[StageName, ...] = ("pretrain", "align", "disentangle")


class LossConfig(Section):
    """Recommendation loss over next-item logits."""

    kind: Literal["bce", "gbce", "sampled_softmax", "softmax"] = "sampled_softmax"
    """`bce`: one negative per position, outside the user's items (the paper's). `gbce`: gSASRec's, with shared
    negatives. `sampled_softmax`: the target among shared negatives. `softmax`: among the whole catalogue, in chunks;
    every step reads all items."""
    negatives: int = Field(2048, ge=1)
    """Uniform negatives shared by a global batch (gbce, sampled_softmax)."""
    in_batch: int = Field(0, ge=0)
    """Negatives more, drawn from the targets of the global batch, which every rank then reads (sampled_softmax)."""
    log_q: bool = False
    """Take the log of its expected count from a negative's logit, so that the loss estimates `softmax`
    (sampled_softmax)."""
    gbce_t: float = Field(0.75, ge=0, le=1)
    """gBCE's calibration t: 0 is BCE, which is overconfident with few negatives; 1 calibrates fully."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind != "sampled_softmax" and (self.in_batch or self.log_q):
            raise ValueError(
                f"in_batch and log_q belong to kind=sampled_softmax: with {self.kind} leave them 0 and false"
            )
        return self


class StageConfig(Section):
    """One training stage."""

    epochs: int = Field(100, ge=0)
    patience: int = Field(20, ge=1)
    """Stop after this many epochs without a better validation hr@10."""
    lr: float = Field(1e-3, gt=0)
    sparse_lr: float = Field(0.1, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    warmup_steps: int = Field(0, ge=0)


class AlignConfig(StageConfig):
    """Stage 2: recommendation-anchored alignment."""

    anchor: bool = True
    """Learn from the recommendation loss too; false: from the alignment alone, encoder and fusion stay as they are."""
    alignment: Literal["mk_mmd", "infonce"] = "mk_mmd"
    """What draws texts t and rows e of the aligned table together. `mk_mmd`: their distributions (the paper's);
    `infonce`: the two of one item, apart from those of all others in the batch, as in CLIP."""
    gamma: float = Field(0.2, ge=0)
    """Weight of the alignment; 0 leaves it out."""
    mmd_item_share: float = Field(1.0, gt=0, le=1)
    """Share of items, redrawn per step by hash, that enter the alignment; 1 is the paper's."""
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
    """Which are mixed: two, or the paper's three."""
    gate: Literal["frequency", "none"] = "frequency"
    """What weighs the experts: the item's frequency bin, with weights that are learned, or nothing: all count alike."""
    freeze: tuple[ExpertName, ...] = ()
    """Experts kept as they come, not all of them; the paper freezes none."""
    expert_loss: float = Field(0.0, ge=0)
    """Weight of each trained expert's own loss beside the mixture's; the paper's is 0."""
    gate_lr: float = Field(1e-2, gt=0)
    gate_weight_decay: float = Field(0.01, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.experts)) < len(self.experts):
            raise ValueError(f"experts={list(self.experts)} names one twice")
        if not set(self.freeze) < set(self.experts):
            raise ValueError(f"freeze={list(self.freeze)} must be some of experts={list(self.experts)}, not all")
        return self


class TrainingConfig(Section):
    """Settings shared by the three stages."""

    world_size: int = Field(2, ge=1)
    """Local ranks that `pad-dist run` starts; the deepspeed and torchrun launchers set their own."""
    batch_size: int = Field(128, ge=1)
    """GLOBAL sequences per step: any world size takes the same steps."""
    loss: LossConfig = LossConfig()
    precision: Literal["fp32", "bf16"] = "fp32"
    zero_stage: Literal[0, 1, 2, 3] = 0
    gradient_accumulation: Literal[1] = 1
    clip: float = Field(0.0, ge=0)
    """Gradient-norm clip of the dense part; 0 is off. The sparse tables are not clipped."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    log_every: int = Field(20, ge=1)
    non_finite: Literal["stop", "skip"] = "stop"
    """A batch whose loss is NaN or infinite ends the run, or changes nothing and is counted."""
    first_step_timeout_s: float = Field(1800, gt=0)
    """Seconds without progress until the first step is done, or in writing a checkpoint, after which the run ends."""
    step_timeout_s: float = Field(300, gt=0)
    """The same for later steps, and for each batch of a validation."""
    restarts: int = Field(0, ge=0)
    """How often `pad-dist run` starts the ranks of a stage again after one of them died, crashed or hung."""


class CheckpointConfig(Section):
    """When and where training keeps its state; none of it changes what is trained."""

    every: int = Field(0, ge=0)
    """Steps between checkpoints; 0: only where an epoch has been validated."""
    keep: int = Field(1, ge=1)
    """Newest checkpoints that stay, beside the best one."""
    resume: str = Field("auto", min_length=1)
    """What a stage goes on from: `auto`, its newest whole checkpoint; `never`; or one checkpoint of it by its URL."""
    asynchronous: bool = True
    """Write while training goes on; false: training waits."""
    on_error: Literal["stop", "continue"] = "stop"
    """After a save that failed (no space, a store that does not answer): end the run, or go on without it."""
    root: str = ""
    """Directory or fsspec URL for the stages' checkpoints of this run; defaults to `out`, where logs stay."""


class EvaluationConfig(Section):
    """Full-catalogue ranking."""

    batch_size: int = Field(512, ge=1)
    """GLOBAL users per ranking step."""
    cold_max_frequency: int = Field(5, ge=0)
    every: int = Field(1, ge=1)
    """Validate every this many epochs."""


class Config(Section):
    """Everything a run needs."""

    name: str = Field(min_length=1)
    seed: int = Field(7, ge=0, lt=2**31)
    out: str = ""
    """Where the run writes; defaults to runs/<name>."""
    dataset: str = ""
    """Dataset URL; defaults to <out>/dataset. `<dataset>/versions/<id>` stays on that version, whatever follows it."""
    continue_from: str = ""
    """`out` of an earlier run of this model on an older version of this dataset: each stage starts from the same stage
    there, a new item from the mean of the ten known items whose texts are nearest (hashed: has no row yet)."""
    data: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    model: ModelConfig = ModelConfig()
    sparse: SparseConfig = SparseConfig()
    training: TrainingConfig = TrainingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    pretrain: StageConfig = StageConfig()
    align: AlignConfig = AlignConfig()
    disentangle: DisentangleConfig = DisentangleConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="before")
    @classmethod
    def _default_locations(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("name"):
            values = dict(values)
            values["out"] = values.get("out") or f"runs/{values['name']}"
            values["dataset"] = values.get("dataset") or f"{values['out']}/dataset"
            data = values.get("data")
            synthetic = isinstance(data, dict) and data.get("synthetic") is not None
            if synthetic and not (data.get("interactions") or data.get("items")):
                raw = f"{values['out']}/raw"
                values["data"] = data | {"interactions": f"{raw}/interactions-*.csv.gz", "items": f"{raw}/items.csv.gz"}
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.sparse.backend == "torchrec":
            parts = self.sparse.grid_columns if self.sparse.sharding == "grid" else 1
            if self.model.dim % (4 * parts):
                cut = f" cut into {parts} by sparse.grid_columns" if parts > 1 else ""
                raise ValueError(
                    f"model.dim={self.model.dim} must be a multiple of {4 * parts} for TorchRec tables{cut}"
                )
        if self.continue_from and os.path.realpath(self.continue_from) == os.path.realpath(self.out):
            raise ValueError(f"continue_from={self.continue_from} is where this run writes: give it another --out")
        return self

    @field_validator("out")
    @classmethod
    def _out_is_a_folder(cls, out: str) -> str:
        if "://" in out:
            raise ValueError(f"{out} is a URL, logs need a folder; `dataset` and `checkpoint.root` may be URLs")
        return out

    def stage(self, name: StageName) -> StageConfig:
        """The section of one stage."""
        return {"pretrain": self.pretrain, "align": self.align, "disentangle": self.disentangle}[name]
