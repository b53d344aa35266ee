"""The whole run config.

Unknown keys are refused, so that a misspelt setting never trains the wrong model (`pad_dist.config.load` reads YAML and
names the nearest valid key).
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, Self, get_args

from pydantic import Field, field_validator, model_validator

from pad_dist.config.alignments import FineGrainedConfig
from pad_dist.config.base import Section
from pad_dist.config.data import DataConfig
from pad_dist.config.keys import set_key
from pad_dist.config.methods import PRESETS, MethodName
from pad_dist.config.model import ModelConfig
from pad_dist.config.sparse import SparseConfig
from pad_dist.config.stages import (
    AlignConfig,
    DisentangleConfig,
    RlmrecConConfig,
    RlmrecGenConfig,
    StageConfig,
    StageName,
)
from pad_dist.config.text import TextConfig
from pad_dist.config.training import CheckpointConfig, EvaluationConfig, TrainingConfig


class Config(Section):
    """Everything that a run needs."""

    name: str = Field(min_length=1)
    """Name of the run."""
    method: MethodName = "pad"
    """What is trained, in which stages (docs/method.md, "Baselines"). `pad`: the paper's method. `id`, `text`: one
    expert alone. `whitenrec`: text alone, with whitened vectors. `llm_init`: id, with a table that starts from the
    texts. `clip`: pretrain and align, with InfoNCE. `ctrl`: align with fine-grained InfoNCE and without anchor, then
    pretrain. `rlmrec_con`, `rlmrec_gen`: id with an auxiliary loss. The keys that a method sets override the config."""
    seed: int = Field(7, ge=0, lt=2**31)
    """Seed of everything random: first weights, order of the data, negatives, dropout."""
    out: str = ""
    """Directory that the run writes to. Empty means `runs/<name>`."""
    dataset: str = ""
    """URL of the dataset. Empty means `<out>/dataset`; `<dataset>/versions/<id>` pins one version."""
    warm_start: str = ""
    """Directory (`out`) of an earlier run of this model on an older version of this dataset; empty starts anew. Each
    stage starts from the same stage of that run, and a new item from the mean of the ten known items whose texts are
    nearest (in hashed tables it has no row yet)."""
    data: DataConfig = DataConfig()
    """Raw inputs, and how they become the histories of a dataset."""
    text: TextConfig = TextConfig()
    """Language model that embeds item texts, and the form of its vectors."""
    model: ModelConfig = ModelConfig()
    """Dense model of the experts."""
    sparse: SparseConfig = SparseConfig()
    """ID tables: where their rows are, and how they learn."""
    training: TrainingConfig = TrainingConfig()
    """Settings that all stages share."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When and where training keeps its state; it does not change what is trained."""
    pretrain: StageConfig = StageConfig()
    """Stage of phase 1, which trains the ID expert."""
    pretrain_text: StageConfig = StageConfig()
    """Stage that trains the text expert alone."""
    align: AlignConfig = AlignConfig()
    """Stage of phase 2, which trains the aligned expert."""
    disentangle: DisentangleConfig = DisentangleConfig()
    """Stage of phase 3, which mixes the experts."""
    rlmrec_con: RlmrecConConfig = RlmrecConConfig()
    """Auxiliary loss of method=rlmrec_con."""
    rlmrec_gen: RlmrecGenConfig = RlmrecGenConfig()
    """Auxiliary loss of method=rlmrec_gen."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Full-catalogue ranking."""

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
    def _apply_preset(cls, values: Any) -> Any:
        """Set the keys of the method, whatever the config says of them."""
        if isinstance(values, dict):
            with suppress(ValueError):  # a value in the place of a section is refused as such below
                for key, value in PRESETS.get(str(values.get("method")), {}).items():
                    values = set_key(cls, values, key, value)
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        alignment = self.align.alignment
        if isinstance(alignment, FineGrainedConfig) and self.model.dim % alignment.sub_vectors:
            raise ValueError(
                f"align.alignment.sub_vectors={alignment.sub_vectors} must divide model.dim={self.model.dim}"
            )
        if self.method == "pad":
            self._check_mixture()
        averaged = [name for name in get_args(StageName) if self.sparse.uvm and self.stage(name).ema_decay]
        if averaged:
            raise ValueError(
                f"{averaged[0]}.ema_decay exchanges whole tables at each validation, past the cache of sparse.uvm: "
                f"set {averaged[0]}.ema_decay=0, or sparse.uvm=false"
            )
        if self.method == "llm_init" and self.sparse.hashed:
            raise ValueError("method=llm_init starts a row for every item: leave sparse.hashed out")
        if self.sparse.backend == "torchrec":
            cuts = self.sparse.grid_columns if self.sparse.sharding == "grid" else 1
            if self.model.dim % (4 * cuts):
                cut = f" cut into {cuts} by sparse.grid_columns" if cuts > 1 else ""
                raise ValueError(
                    f"model.dim={self.model.dim} must be a multiple of {4 * cuts} for TorchRec tables{cut}"
                )
        if self.warm_start and os.path.realpath(self.warm_start) == os.path.realpath(self.out):
            raise ValueError(f"warm_start={self.warm_start} is where this run writes: give it another --out")
        return self

    def _check_mixture(self) -> None:
        """Refuse negatives that the last stage cannot learn from."""
        loss, last = self.training.loss, self.disentangle
        needing, instead = (" and ".join(last.sums_over_catalogue), " ".join(last.sums_over_catalogue.values()))
        if needing and not loss.is_softmax:
            raise ValueError(f"{needing} needs a softmax, not training.loss.kind={loss.kind}: set {instead}")
        if loss.from_batch and last.targets == "valid" and (needing or loss.corrects_log_q):
            raise ValueError(
                "training.loss.in_batch draws from the targets, and the odds of validation targets are not known: set "
                "training.loss.in_batch=0, or disentangle.targets=train"
            )
        if needing and loss.from_batch and not loss.corrects_log_q:
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
