"""The sections of a run config that shape the model and its ID tables."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from pad_dist.config_data import Section


class CaserConfig(Section):
    """Convolutions of the Caser backbone."""

    window: int = Field(5, ge=1)
    """Last items that an output depends on."""
    horizontal: int = Field(16, ge=1)
    """Filters of each height from 1 to the window."""
    vertical: int = Field(4, ge=1)
    """Filters across the window, in each dimension alike."""


class NeighboursConfig(Section):
    """The expert that scores an item by the cosines of its text with those of the user's last items."""

    decay: float = Field(0.8, gt=0, le=1)
    """Weight of an item's cosine against that of the item after it in the history; 1: all count alike."""
    temperature: float = Field(0.1, gt=0)
    """Divides the sum of cosines."""


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
    neighbours: NeighboursConfig = NeighboursConfig()
    projector_layers: int = Field(1, ge=1)
    """Hidden Linear(d, d) layers after Linear(text_dim, d)."""
    projector_activation: bool = False
    """GELU after the last layer too (the paper's form)."""
    projector_dropout: float | None = Field(None, ge=0, lt=1)
    """Of the projector's hidden layers; null: `dropout` (the paper's)."""
    fusion: Literal["concat", "sum"] = "sum"
    """Aligned item vector: GELU(Linear([e ; t])) (the paper's form) or e + t."""
    row_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of items, redrawn each step, that the aligned expert reads from their texts alone, as it will read those
    that training has not seen; the paper's is 0."""
    gate_init: Literal["ramps", "even"] = "even"
    """First gate logits: the paper's ramps, which all but close the aligned expert, or zeros."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.backbone in ("sasrec", "ligr") and self.dim % self.heads:
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
