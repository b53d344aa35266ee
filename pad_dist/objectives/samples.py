"""The samples that an alignment compares: those of all ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def alone(group: dist.ProcessGroup | None) -> bool:
    """Whether this is the only rank."""
    return not dist.is_initialized() or dist.get_world_size(group) == 1


@torch.no_grad()
def gather(rows: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """[U, C] of each rank -> [N, C] of all, without gradient; zeros fill up the ranks with fewer rows. Collective."""
    if alone(group):
        return rows.detach()
    most = torch.tensor(len(rows), device=rows.device)
    dist.all_reduce(most, dist.ReduceOp.MAX, group)
    rows = F.pad(rows, (0, 0, 0, int(most) - len(rows)))
    gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, rows, group)
    return torch.cat(gathered)


def unit(vectors: Tensor) -> Tensor:
    """[U, D], L2-normalised; a vector of zeros stays zeros."""
    lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors / torch.where(lengths > 0, lengths, 1)


def once(items: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """[U] weights that make an item one sample, however often and on how many ranks it occurs. Collective.

    `items` [U] are the rank's, none of them 0.
    """
    distinct, counts = gather(items.unsqueeze(1), group).unique(return_counts=True)
    weights: Tensor = 1 / counts[torch.searchsorted(distinct, items)]
    return weights
