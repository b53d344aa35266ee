"""Run configuration: one typed object, every key documented where it is declared.

Unknown keys are refused, so that a misspelt setting never trains the wrong model
(`pad_dist.config_file` reads YAML and names the nearest valid key). The sections
`data` and `text` are in `pad_dist.config_data`.
"""

from __future__ import annotations

import os
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pad_dist.config_data import DataConfig, InputFormat, ReduceConfig, Section, SplitConfig, TextConfig

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
STAGES: tuple[StageName, ...] = ("pretrain", "align", "disentangle")


class CaserConfig(Section):
    """Convolutions of the Caser backbone."""

    window: int = Field(5, ge=1)
    """Last items that an output depends on."""
    horizontal: int = Field(16, ge=1)
    """Filters of each height from 1 to the window."""
    vertical: int = Field(4, ge=1)
    """Filters across the window, in each dimension alike."""


class ModelConfig(Section):
    """Backbone, projector and fusion (METHOD, backbone and text)."""

    backbone: Literal["sasrec", "ligr", "gru4rec", "caser"] = "sasrec"
    """Sequence encoder of every expert. `sasrec`: the paper's transformer; `ligr`: a pre-norm transformer with gated
    residuals and SwiGLU (eSASRec's); `gru4rec`: a GRU; `caser`: convolutions over the last items."""
    dim: int = Field(128, ge=4)
    blocks: int = Field(1, ge=1)
    """Layers (sasrec, ligr, gru4rec)."""
    heads: int = Field(2, ge=1)
    """Attention heads (sasrec, ligr)."""
    max_length: int = Field(20, ge=1)
    """Context length L."""
    dropout: float = Field(0.3, ge=0, lt=1)
    norm: Literal["pre", "post"] = "pre"
    """Layer norm before or after each sublayer (sasrec; ligr is pre-norm)."""
    positions: Literal["end", "none"] = "none"
    """`end`: learned positions aligned at the last item; `none`: order from the causal mask alone (sasrec, ligr)."""
    caser: CaserConfig = CaserConfig()
    projector_layers: int = Field(1, ge=1)
    """Hidden Linear(d, d) layers after Linear(text_dim, d)."""
    projector_activation: bool = False
    """GELU after the last layer too (the paper's form)."""
    fusion: Literal["concat", "sum"] = "sum"
    """Aligned item vector: GELU(Linear([e ; t])) (the paper's form) or e + t."""
    gate_init: Literal["ramps", "even"] = "even"
    """First gate logits: the paper's ramps, which all but close the aligned expert, or zeros."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dim % self.heads:
            raise ValueError("model.heads must divide model.dim")
        return self


class HashedConfig(Section):
    """Rows for ids as they come, in place of one row per item: a bounded table under an unbounded catalogue.

    An id is a 64-bit hash of the item's key and belongs to one bucket, which owns rows / buckets rows.
    """

    rows: int = Field(ge=1)
    """Rows of each table, a multiple of `buckets`; 24 bytes each come on top for the map."""
    buckets: int = Field(1 << 14, ge=1 << 10, le=1 << 30)
    """A power of two, at least 64 times the largest world size; 16 to 128 rows in a bucket are a good choice."""
    admit_after: int = Field(1, ge=1)
    """Sightings in training sequences after which an id gets a row; until then it is scored from its text alone."""
    evict: Literal["lru", "lfu"] = "lru"
    """Whose row a new id takes in a full bucket: the least recently or the least frequently seen one's."""
    candidates: int = Field(4, ge=1)
    """Ids of a bucket whose sightings are counted before they have a row."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.buckets & (self.buckets - 1):
            raise ValueError(f"sparse.hashed.buckets={self.buckets} must be a power of two")
        if self.rows % self.buckets:
            raise ValueError(
                f"sparse.hashed.rows={self.rows} must be a multiple of sparse.hashed.buckets={self.buckets}: "
                f"use {-(-self.rows // self.buckets) * self.buckets}"
            )
        return self


class SparseConfig(Section):
    """Where the ID tables live and how they learn."""

    backend: Literal["torchrec", "torch"] = "torchrec"
    """`torch`: one process, plain tensors, for machines without fbgemm."""
    sharding: Literal["row_wise", "table_wise", "column_wise", "grid", "planner"] = "row_wise"
    """What a rank holds of a table: a range of rows, all of it, some columns, a block of rows and columns, or what
    TorchRec's planner finds best among the first three."""
    grid_columns: int = Field(2, ge=2)
    """Parts that `grid` cuts a row into. The reads of a much wanted row are spread over as many ranks."""
    precision: Literal["fp32", "fp16"] = "fp32"
    """Type of the rows; what is looked up, and the state of the optimizers, is fp32 always."""
    optimizer: Literal["rowwise_adagrad", "adagrad", "sgd", "adam", "partial_rowwise_adam", "adamw"] = "rowwise_adagrad"
    """`adam` and `partial_rowwise_adam` exist on CUDA alone, `adamw` (dense, over the whole table) in the torch
    backend alone."""
    uvm: bool = False
    """CUDA only: let the planner place rows in the host's memory, those in use cached on the device."""
    init_std: float | None = Field(0.02, gt=0)
    """Standard deviation of a new row; null: Xavier-normal over the whole table (the paper's)."""
    hashed: HashedConfig | None = None
    """null: one row per item of the dataset."""
    memory_gib: float | None = Field(None, gt=0)
    """Memory that a rank may use in all; null: that of its device (on CPU its share of the machine's)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.optimizer == "adamw" and self.backend != "torch":
            raise ValueError(
                "sparse.optimizer=adamw has no fbgemm kernel: use rowwise_adagrad, "
                "or sparse.backend=torch on one process"
            )
        if self.backend == "torch" and (self.optimizer in ("adam", "partial_rowwise_adam") or self.uvm):
            what = "sparse.uvm" if self.uvm else f"sparse.optimizer={self.optimizer}"
            raise ValueError(f"{what} is fbgemm's: use sparse.backend=torchrec, or adamw with the torch backend")
        if self.optimizer == "adamw" and self.precision == "fp16":
            raise ValueError("sparse.optimizer=adamw steps fp32 rows alone: use sparse.precision=fp32")
        if self.sharding in ("column_wise", "grid") and self.optimizer in ("rowwise_adagrad", "partial_rowwise_adam"):
            raise ValueError(
                f"sparse.sharding={self.sharding} would keep one {self.optimizer} state per part of a row, which "
                "changes the result: use optimizer=adagrad or another sharding"
            )
        return self


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

    gamma: float = Field(0.2, ge=0)
    """Weight of MK-MMD."""
    mmd_item_share: float = Field(1.0, gt=0, le=1)
    """Share of items, redrawn per step by hash, that enter MK-MMD; 1 is the paper's."""


class DisentangleConfig(StageConfig):
    """Stage 3: frequency-gated triple-expert mixture."""

    freeze: tuple[ExpertName, ...] = Field((), max_length=2)
    """Experts kept as they come, two at most; the paper freezes none."""
    expert_loss: float = Field(0.0, ge=0)
    """Weight of each trained expert's own loss beside the mixture's; the paper's is 0."""
    gate_lr: float = Field(1e-2, gt=0)
    gate_weight_decay: float = Field(0.01, ge=0)


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
