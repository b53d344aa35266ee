"""The sharded backend: a TorchRec EmbeddingCollection planned over the ranks."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import Tensor
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
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
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingEnv

from pad_dist.config import SparseConfig
from pad_dist.errors import UserError
from pad_dist.sparse.tables import ADAGRAD_EPS, Part, Tables, TableSpec, has_rows

_OPTIMIZERS = {
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "sgd": EmbOptimType.EXACT_SGD,
}


class TorchRecTables(Tables):
    """Tables created on meta, planned, and allocated shard by shard on their ranks."""

    def __init__(self, spec: TableSpec, config: SparseConfig, device: torch.device) -> None:
        group = dist.group.WORLD
        if group is None:
            raise RuntimeError("init_process_group must come before TorchRecTables")
        self.spec = spec
        self._device = device
        collection = EmbeddingCollection(
            tables=[
                EmbeddingConfig(
                    name=name,
                    num_embeddings=spec.rows,
                    embedding_dim=spec.dim,
                    feature_names=[name],
                    init_fn=lambda rows: rows,  # `initialise` fills them
                )
                for name in spec.names
            ],
            device=torch.device("meta"),
        )
        sharder = EmbeddingCollectionSharder(
            fused_params={"optimizer": _OPTIMIZERS[config.optimizer], "learning_rate": spec.lr, "eps": ADAGRAD_EPS}
        )
        plan = _plan(collection, sharder, spec, config, device, group)
        self._collection = sharder.shard(
            collection, cast(Any, plan), ShardingEnv.from_process_group(group), device=device
        )

    def lookup(self, items: Tensor) -> dict[str, Tensor]:
        names = self.spec.names
        features = KeyedJaggedTensor(
            keys=list(names),
            values=items.repeat(len(names)),
            lengths=torch.full((len(names),), len(items), dtype=torch.int64, device=items.device),
        )
        return {name: rows.values() for name, rows in self._collection(features).items()}

    def parts(self) -> list[Part]:
        arrays = {key.split(".")[1]: weights for key, weights in self._collection.state_dict().items()}
        for state in self._collection.fused_optimizer.state_dict()["state"].values():
            arrays |= state
        return [
            Part(name, shard.tensor.detach(), tuple(shard.metadata.shard_offsets), tuple(array.metadata().size))
            for name, array in arrays.items()
            for shard in array.local_shards()
        ]

    def set_lr(self, lr: float) -> None:
        for group in self._collection.fused_optimizer.param_groups:
            group["lr"] = lr
        # The kernels read the rate when the optimizer steps, not when it is assigned.
        self._collection.fused_optimizer.step()


def _plan(
    collection: EmbeddingCollection,
    sharder: EmbeddingCollectionSharder,
    spec: TableSpec,
    config: SparseConfig,
    device: torch.device,
    group: dist.ProcessGroup,
) -> EmbeddingModuleShardingPlan:
    memory = int(config.memory_gib * 2**30)
    world_size = dist.get_world_size(group)
    topology = TopologyFactory.create_topology(
        TrainerConfig(
            world_size=world_size, hbm_cap_bytes=memory if device.type == "cuda" else 0, ddr_cap_bytes=memory
        ),
        kernel_config=KernelConfig(compute_device=device.type),
    )
    shardings: list[str] = [config.sharding]
    if config.sharding == "planner":
        # Row-wise Adagrad keeps one number per row; cut by columns a row would have several.
        by_column = [] if config.optimizer == "rowwise_adagrad" else ["column_wise"]
        by_row = ["row_wise"] if has_rows(spec.rows, world_size) else []
        shardings = ["table_wise", *by_row, *by_column]
    constraints = {
        name: ParameterConstraints(sharding_types=shardings, compute_kernels=["fused"]) for name in spec.names
    }
    planner = EmbeddingShardingPlanner(
        topology=topology,
        constraints=constraints,
        # The dense part is not in memory_gib.
        storage_reservation=FixedPercentageStorageReservation(0.0),
        debug=False,
    )
    try:
        plan = planner.collective_plan(collection, cast(Any, [sharder]), group)
    except PlannerError as error:
        raise UserError(
            f"the TorchRec planner finds no {config.sharding} placement of {spec.rows:,} x {spec.dim} tables on "
            f"{world_size} rank(s) with sparse.memory_gib={config.memory_gib:g}: use more ranks or raise it "
            f"({str(error).strip().splitlines()[0]})"
        ) from None
    return cast(EmbeddingModuleShardingPlan, plan.plan[""])
