"""The section of a run config that shapes the ID tables."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from pad_dist.config.base import Section


class HashedConfig(Section):
    """Hashed tables: a fixed number of rows for a catalogue of any size.

    An id is a 64-bit hash of the item's key and belongs to one bucket, which owns rows / buckets rows.
    """

    rows: int = Field(ge=1)
    """Number of rows of each table, over all ranks; a multiple of `sparse.hashed.buckets`. The map from ids to rows
    takes 24 more bytes per row."""
    buckets: int = Field(1 << 14, ge=1 << 10, le=1 << 30)
    """Number of buckets of a table: a power of two, at least 64 times the largest world size. 16 to 128 rows per bucket
    work well."""
    admit_after: int = Field(1, ge=1)
    """Number of occurrences in training sequences after which an id gets a row; until then the item is scored from its
    text alone."""
    evict: Literal["lru", "lfu"] = "lru"
    """Which id loses its row to a new one in a full bucket: the least recently seen (`lru`) or the least frequently
    seen (`lfu`)."""
    candidates: int = Field(4, ge=1)
    """Number of ids without a row whose occurrences a bucket counts."""

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
    """ID tables: where their rows are, and how they learn."""

    execution_keys = frozenset({"backend", "sharding", "grid_columns", "uvm", "memory_gib"})

    backend: Literal["torchrec", "torch"] = "torchrec"
    """`torchrec`: tables on any number of ranks. `torch`: plain tensors in one process, for machines without fbgemm."""
    sharding: Literal["row_wise", "table_wise", "column_wise", "grid", "planner"] = "row_wise"
    """What a rank stores of a table. `row_wise`: a range of rows. `table_wise`: the whole table or nothing.
    `column_wise`: some of the columns. `grid`: a block of rows and columns. `planner`: what TorchRec's planner picks
    among the first three."""
    grid_columns: int = Field(2, ge=2)
    """Number of column blocks that `sparse.sharding=grid` cuts a table into; the reads of a popular row are spread over
    as many ranks."""
    precision: Literal["fp32", "fp16"] = "fp32"
    """Number type of the stored rows. Rows that are looked up, and the state of the optimizer, are always fp32."""
    optimizer: Literal["rowwise_adagrad", "adagrad", "sgd", "adam", "partial_rowwise_adam", "adamw"] = "rowwise_adagrad"
    """Optimizer of the tables. `adam` and `partial_rowwise_adam` need CUDA. `adamw` needs `sparse.backend=torch` and
    changes every row in every step."""
    uvm: bool = False
    """Let TorchRec's planner place rows in host memory and cache those in use on the GPU (CUDA only)."""
    init_std: float | None = Field(0.02, gt=0)
    """Standard deviation of the values of a new row. null draws them Xavier-normal over the whole table, as the paper
    does."""
    hashed: HashedConfig | None = None
    """Hashed tables: a fixed number of rows for a catalogue of any size. null gives each item of the dataset a row of
    its own."""
    memory_gib: float | None = Field(None, gt=0)
    """GiB of memory that a rank may use. null takes all memory of its GPU, or on a CPU its share of the machine's."""

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
