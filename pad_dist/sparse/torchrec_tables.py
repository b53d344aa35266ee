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
from pad_dist.devices import local_ranks, this_device
from pad_dist.sparse.placement import stacked, unstacked
from pad_dist.sparse.planning import build_collection, build_sharder, plan
from pad_dist.sparse.tables import Part, Tables, TableSpec, rows_of_tables


class TorchRecTables(Tables):
    """Tables created on meta, planned, and allocated shard by shard on their ranks."""

    def __init__(self, spec: TableSpec, config: SparseConfig, device: torch.device) -> None:
        group = dist.group.WORLD
        if group is None:
            raise RuntimeError("init_process_group must come before TorchRecTables")
        self.spec = spec
        self._device = device
        self._held = stacked(spec, config)
        world_size = dist.get_world_size(group)
        memory = this_device(device.type, local_ranks(world_size)).limited(config.memory_gib)
        found = plan(spec, config, memory, world_size, group)
        self._collection = build_sharder(spec, config).shard(
            build_collection(spec, config), cast(Any, found), ShardingEnv.from_process_group(group), device=device
        )

    def lookup(self, items: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        asked = rows_of_tables(items, self.spec.names)
        firsts = torch.arange(0, self._held.rows, self.spec.rows, device=self._device)
        # The parts of a row, one after the other.
        values = [(asked[name].unsqueeze(1) + firsts).flatten() for name in self.spec.names]
        features = KeyedJaggedTensor(
            keys=list(self.spec.names),
            values=torch.cat(values),
            lengths=torch.tensor([len(rows) for rows in values], device=self._device),
        )
        return {name: rows.values().view(-1, self.spec.dim) for name, rows in self._collection(features).items()}

    def parts(self) -> list[Part]:
        arrays = {key.split(".")[1]: weights for key, weights in self._collection.state_dict().items()}
        for state in self._collection.fused_optimizer.state_dict()["state"].values():
            arrays |= state
        return [
            part
            for name, array in arrays.items()
            for shard in array.local_shards()
            for part in self._parts(name, shard.tensor.detach(), shard.metadata.shard_offsets, array.metadata().size)
        ]

    def _parts(self, name: str, tensor: Tensor, offsets: list[int], shape: torch.Size) -> list[Part]:
        if self._held.rows == self.spec.rows:
            return [Part(name, tensor, tuple(offsets), tuple(shape))]
        pieces = unstacked(offsets[0], offsets[0] + len(tensor), self.spec.rows, self._held.dim)
        whole = (self.spec.rows, self.spec.dim)
        return [Part(name, tensor[local], (row, column), whole) for local, row, column in pieces]

    def set_lr(self, lr: float) -> None:
        for group in self._collection.fused_optimizer.param_groups:
            group["lr"] = lr
        # The kernels read the rate when the optimizer steps, not when it is assigned.
        self._collection.fused_optimizer.step()

    def set_step(self, step: int) -> None:
        # By themselves the kernels count look-ups, those of a validation too.
        for module in self._kernels():
            module.iter_cpu.fill_(step)
            module.iter.fill_(step)

    def _kernels(self) -> list[SplitTableBatchedEmbeddingBagsCodegen]:
        lookups = self._collection._lookups
        modules = (module for lookup in lookups for module in lookup.modules())
        return [module for module in modules if isinstance(module, SplitTableBatchedEmbeddingBagsCodegen)]
