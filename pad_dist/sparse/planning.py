"""TorchRec's planner for the tables of a stage, in a process group or without one."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from torchrec import EmbeddingCollection, EmbeddingConfig, optim
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    KernelConfig,
    ParameterConstraints,
    PlannerError,
    TopologyFactory,
    TrainerConfig,
)
from torchrec.distributed.types import EmbeddingModuleShardingPlan
from torchrec.modules.embedding_configs import DataType

from pad_dist.config import SparseConfig
from pad_dist.runtime.devices import Device
from pad_dist.sparse.placement import DEVICE_SHARE, Block, PlacementError, stacked
from pad_dist.sparse.row_shards import has_rows
from pad_dist.sparse.spec import ADAGRAD_EPS, TableSpec

_OPTIMIZERS = {
    "rowwise_adagrad": (EmbOptimType.EXACT_ROWWISE_ADAGRAD, optim.RowWiseAdagrad),
    "adagrad": (EmbOptimType.EXACT_ADAGRAD, optim.Adagrad),
    "sgd": (EmbOptimType.EXACT_SGD, optim.SGD),
    "adam": (EmbOptimType.ADAM, optim.Adam),
    "partial_rowwise_adam": (EmbOptimType.PARTIAL_ROWWISE_ADAM, optim.PartialRowWiseAdam),
}
"""fbgemm's fused optimizers, and the classes from which TorchRec's planner counts their state."""


def build_collection(spec: TableSpec, config: SparseConfig) -> EmbeddingCollection:
    """The tables on the meta device: shapes alone."""
    stacked_spec = stacked(spec, config)
    return EmbeddingCollection(
        tables=[
            EmbeddingConfig(
                name=name,
                num_embeddings=stacked_spec.rows,
                embedding_dim=stacked_spec.dim,
                feature_names=[name],
                data_type=DataType.FP32 if config.precision == "fp32" else DataType.FP16,
                init_fn=lambda rows: rows,  # `Tables.initialise` fills them
            )
            for name in stacked_spec.names
        ],
        device=torch.device("meta"),
    )


def build_sharder(spec: TableSpec, config: SparseConfig) -> EmbeddingCollectionSharder:
    """A sharder of the collection with the fused optimizer of the config."""
    return EmbeddingCollectionSharder(
        fused_params={
            "optimizer": _OPTIMIZERS[config.optimizer][0],
            "learning_rate": spec.lr,
            "eps": ADAGRAD_EPS,
            # The gradients have the type of the output too.
            "output_dtype": SparseType.FP32,
        }
    )


def plan(
    spec: TableSpec,
    config: SparseConfig,
    device: Device,
    world_size: int,
    group: dist.ProcessGroup | None = None,
) -> EmbeddingModuleShardingPlan:
    """TorchRec's plan for the config: with a group the same on every rank (collective), else computed here alone.

    Raises:
        PlacementError: the tables do not fit.
    """
    topology = TopologyFactory.create_topology(
        TrainerConfig(
            world_size=world_size,
            local_world_size=math.gcd(world_size, device.ranks_per_host),
            hbm_cap_bytes=device.memory if device.kind == "cuda" else 0,
            ddr_cap_bytes=device.host_memory if device.kind == "cpu" or config.uvm else 0,
        ),
        kernel_config=KernelConfig(compute_device=device.kind),
    )
    planner = EmbeddingShardingPlanner(
        topology=topology,
        constraints={name: _constraints(spec, config, world_size) for name in spec.names},
        # pad_dist.capacity checks what else is in a device's memory.
        storage_reservation=FixedPercentageStorageReservation(0.0),
        debug=False,
    )
    collection, sharders = build_collection(spec, config), cast(Any, [build_sharder(spec, config)])
    for rows in collection.parameters():
        rows._optimizer_classes = [_OPTIMIZERS[config.optimizer][1]]
    try:
        result = planner.collective_plan(collection, sharders, group) if group else planner.plan(collection, sharders)
    except PlannerError as error:
        raise PlacementError(
            f"the TorchRec planner finds no {config.sharding} placement of {spec.rows:,} x {spec.dim} tables on "
            f"{world_size} rank(s) of {device.memory / 2**30:.3g} GiB: use more ranks or sparse.sharding=row_wise "
            f"({str(error).strip().splitlines()[0]})"
        ) from None
    return cast(EmbeddingModuleShardingPlan, result.plan[""])


def planned(spec: TableSpec, config: SparseConfig, device: Device, world_size: int) -> list[Block]:
    """The blocks of `plan`, computed without a process group."""
    return [
        Block(name, cast(int, shard.placement.rank()), *_interleaved(shard), sharding.compute_kernel)
        for name, sharding in plan(spec, config, device, world_size).items()
        for shard in cast(Any, sharding.sharding_spec).shards
    ]


def _interleaved(shard: Any) -> tuple[int, int, int, int]:
    (row, column), (rows, columns) = shard.shard_offsets, shard.shard_sizes
    return row, rows, column, columns


def _constraints(spec: TableSpec, config: SparseConfig, world_size: int) -> ParameterConstraints:
    shardings: list[str] = ["row_wise" if config.sharding == "grid" else config.sharding]
    if config.sharding == "planner":
        # A row-wise optimizer keeps one number per row; cut by columns a row would have several.
        by_column = [] if config.optimizer in ("rowwise_adagrad", "partial_rowwise_adam") else ["column_wise"]
        by_row = ["row_wise"] if has_rows(spec.rows, world_size) else []
        shardings = ["table_wise", *by_row, *by_column]
    narrowest = None
    if config.sharding == "column_wise":
        # By default TorchRec does not cut rows of 128 columns or fewer.
        narrowest = next(w for w in range(4, spec.dim + 1, 4) if spec.dim % w == 0 and spec.dim // w <= world_size)
    kernels = [kernel for kernel, share in DEVICE_SHARE.items() if share == 1 or config.uvm]
    return ParameterConstraints(sharding_types=shardings, compute_kernels=kernels, min_partition=narrowest)
