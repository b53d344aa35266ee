"""Run configuration: one typed object, every key documented where it is declared.

Unknown keys are refused, so that a misspelt setting never trains the wrong model
(`pad_dist.config_file` reads YAML and names the nearest valid key). The sections
`data` and `text` are in `pad_dist.config_data`, `model` and `sparse` in `pad_dist.config_model`,
those of stages and methods in `pad_dist.config_stages`.
"""

from __future__ import annotations

import os
from typing import Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from pad_dist.config_data import DataConfig, InputFormat, ReduceConfig, Section, SplitConfig, TextConfig
from pad_dist.config_model import CaserConfig, HashedConfig, ModelConfig, NeighboursConfig, SparseConfig
from pad_dist.config_stages import (
    AlignConfig,
    CtrlConfig,
    DisentangleConfig,
    ExpertName,
    KernelName,
    MethodName,
    RlmrecConConfig,
    RlmrecGenConfig,
    StageConfig,
    StageName,
)

__all__ = [
    "AlignConfig",
    "CaserConfig",
    "CheckpointConfig",
    "Config",
    "CtrlConfig",
    "DataConfig",
    "DisentangleConfig",
    "EvaluationConfig",
    "ExpertName",
    "HashedConfig",
    "InputFormat",
    "KernelName",
    "LossConfig",
    "MethodName",
    "ModelConfig",
    "NeighboursConfig",
    "ReduceConfig",
    "RlmrecConConfig",
    "RlmrecGenConfig",
    "SparseConfig",
    "SplitConfig",
    "StageConfig",
    "StageName",
    "TextConfig",
    "TrainingConfig",
]


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


class TrainingConfig(Section):
    """Settings shared by all stages."""

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


_SET_BY_METHOD: dict[str, dict[str, dict[str, Any]]] = {
    "whitenrec": {"text": {"transform": "whiten", "whitening": 1.0}},
    "clip": {"align": {"alignment": "infonce", "kernel": "gaussian_mixture", "samples": "occurrences"}},
}


class Config(Section):
    """Everything a run needs."""

    name: str = Field(min_length=1)
    method: MethodName = "pad"
    """What is trained, in which stages. `pad`: the paper's. `id`, `text`: one expert alone. `whitenrec`: text alone,
    with text.transform=whiten. `llm_init`: id, the table started from the texts. `clip`: pretrain and align, with
    align.alignment=infonce. `ctrl`, `rlmrec_con`, `rlmrec_gen`: see their sections. What a method
    sets holds whatever the section says."""
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
    pretrain_text: StageConfig = StageConfig()
    align: AlignConfig = AlignConfig()
    disentangle: DisentangleConfig = DisentangleConfig()
    ctrl: CtrlConfig = CtrlConfig()
    rlmrec_con: RlmrecConConfig = RlmrecConConfig()
    rlmrec_gen: RlmrecGenConfig = RlmrecGenConfig()
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

    @model_validator(mode="before")
    @classmethod
    def _of_method(cls, values: Any) -> Any:
        """The keys that a method sets, whatever the config says of them."""
        if not isinstance(values, dict):
            return values
        for section, keys in _SET_BY_METHOD.get(str(values.get("method")), {}).items():
            given = values.get(section, {})
            given = given.model_dump(exclude_unset=True) if isinstance(given, Section) else given
            if isinstance(given, dict):
                values = values | {section: given | keys}
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.method == "ctrl" and self.model.dim % self.ctrl.sub_vectors:
            raise ValueError(f"ctrl.sub_vectors={self.ctrl.sub_vectors} must divide model.dim={self.model.dim}")
        if self.method == "pad":
            self._check_mixture()
        averaged = [name for name in get_args(StageName) if self.sparse.uvm and self.stage(name).average]
        if averaged:
            raise ValueError(
                f"{averaged[0]}.average exchanges whole tables at each validation, past the cache of sparse.uvm: "
                f"set {averaged[0]}.average=0, or sparse.uvm=false"
            )
        if self.method == "llm_init" and self.sparse.hashed:
            raise ValueError("method=llm_init starts a row for every item: leave sparse.hashed out")
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

    def _check_mixture(self) -> None:
        """That the training loss's negatives are such as the last stage needs."""
        loss, last = self.training.loss, self.disentangle
        # What of the stage estimates a sum over the catalogue, and what to set in its place.
        sums = {}
        if last.mix == "log_probabilities":
            sums["disentangle.mix=log_probabilities"] = "disentangle.mix=logits"
        if last.loss == "ndcg":
            power = " disentangle.rare_power=0" if last.rare_power else ""
            sums["disentangle.loss=ndcg"] = f"disentangle.loss=recommendation{power}"
        needing, instead = " and ".join(sums), " ".join(sums.values())
        if sums and loss.kind in ("bce", "gbce"):
            raise ValueError(f"{needing} needs a softmax, not training.loss.kind={loss.kind}: set {instead}")
        if loss.in_batch and last.targets == "valid" and (sums or loss.log_q):
            raise ValueError(
                "training.loss.in_batch draws from the targets, and the odds of validation targets are not known: set "
                "training.loss.in_batch=0, or disentangle.targets=train"
            )
        if sums and loss.in_batch and not loss.log_q:
            raise ValueError(
                f"{needing} needs negatives of known odds: set training.loss.log_q=true, or training.loss.in_batch=0"
            )

    @field_validator("out")
    @classmethod
    def _out_is_a_folder(cls, out: str) -> str:
        if "://" in out:
            raise ValueError(f"{out} is a URL, logs need a folder; `dataset` and `checkpoint.root` may be URLs")
        return out

    def stage(self, name: StageName) -> StageConfig:
        """The section of one stage."""
        section: StageConfig = getattr(self, name)
        return section

    def stage_model(self, name: StageName) -> ModelConfig:
        """The model section with the stage's own dropout."""
        dropout = self.stage(name).dropout
        return self.model if dropout is None else self.model.model_copy(update={"dropout": dropout})
