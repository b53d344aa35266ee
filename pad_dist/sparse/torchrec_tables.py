"""The sharded backend: a TorchRec EmbeddingCollection planned over the ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor
from torchrec import KeyedJaggedTensor
from torchrec.distributed.types import ShardingEnv

from pad_dist.config import SparseConfig
from pad_dist.runtime.devices import local_ranks, this_device
from pad_dist.sparse.placement import stacked, unstacked
from pad_dist.sparse.planning import build_collection, build_sharder, plan
from pad_dist.sparse.spec import Tables, TableShard, TableSpec, rows_of_tables


class TorchRecTables(Tables):
    """Tables created on meta, planned, and allocated shard by shard on their ranks."""

    def __init__(self, spec: TableSpec, config: SparseConfig, device: torch.device) -> None:
        group = dist.group.WORLD
        if group is None:
            raise RuntimeError("init_process_group must come before TorchRecTables")
        self.spec = spec
        self._device = device
        self._stacked = stacked(spec, config)
        world_size = dist.get_world_size(group)
        memory = this_device(device.type, local_ranks(world_size)).limited(config.memory_gib)
        sharding_plan = plan(spec, config, memory, world_size, group)
        self._collection = build_sharder(spec, config).shard(
            build_collection(spec, config),
            cast(Any, sharding_plan),
            ShardingEnv.from_process_group(group),
            device=device,
        )

    def lookup(self, items: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        wanted = rows_of_tables(items, self.spec.names)
        firsts = torch.arange(0, self._stacked.rows, self.spec.rows, device=self._device)
        # The pieces of each row, one after the other.
        values = [(wanted[name].unsqueeze(1) + firsts).flatten() for name in self.spec.names]
        features = KeyedJaggedTensor(
            keys=list(self.spec.names),
            values=torch.cat(values),
            lengths=torch.tensor([len(rows) for rows in values], device=self._device),
        )
        return {name: rows.values().view(-1, self.spec.dim) for name, rows in self._collection(features).items()}

    def shards(self) -> list[TableShard]:
        arrays = {key.split(".")[1]: weights for key, weights in self._collection.state_dict().items()}
        for state in self._collection.fused_optimizer.state_dict()["state"].values():
            arrays |= state
        return [
            shard
            for name, array in arrays.items()
            for local in array.local_shards()
            for shard in self._table_shards(
                name, local.tensor.detach(), local.metadata.shard_offsets, array.metadata().size
            )
        ]

    def _table_shards(self, name: str, tensor: Tensor, offsets: list[int], shape: torch.Size) -> list[TableShard]:
        if self._stacked.rows == self.spec.rows:
            return [TableShard(name, tensor, tuple(offsets), tuple(shape))]
        pieces = unstacked(offsets[0], offsets[0] + len(tensor), self.spec.rows, self._stacked.dim)
        full_shape = (self.spec.rows, self.spec.dim)
        return [TableShard(name, tensor[local], (row, column), full_shape) for local, row, column in pieces]

    def set_lr(self, lr: float) -> None:
        for group in self._collection.fused_optimizer.param_groups:
            group["lr"] = lr
        # The kernels read the rate when the optimizer steps, not at the assignment.
        self._collection.fused_optimizer.step()

    def set_step(self, step: int) -> None:
        # The kernels themselves count look-ups, including those of a validation.
        for module in self._kernels():
            module.iter_cpu.fill_(step)
            module.iter.fill_(step)

    def _kernels(self) -> list[SplitTableBatchedEmbeddingBagsCodegen]:
        lookups = self._collection._lookups
        modules = (module for lookup in lookups for module in lookup.modules())
        return [module for module in modules if isinstance(module, SplitTableBatchedEmbeddingBagsCodegen)]
