"""What an alignment compares: the samples of all ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def alone(group: dist.ProcessGroup | None) -> bool:
    """Whether there is no other rank."""
    return not dist.is_initialized() or dist.get_world_size(group) == 1


@torch.no_grad()
def gather(own: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """[U, C] of each rank -> [N, C] of all, without gradient; short ranks are filled up with zeros. Collective."""
    if alone(group):
        return own.detach()
    most = torch.tensor(len(own), device=own.device)
    dist.all_reduce(most, dist.ReduceOp.MAX, group)
    own = F.pad(own, (0, 0, 0, int(most) - len(own)))
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, own, group)
    return torch.cat(parts)


def unit(vectors: Tensor) -> Tensor:
    """[U, D], L2-normalised; a vector of zeros, which has no direction, stays as it is."""
    lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors / torch.where(lengths > 0, lengths, 1)


def once(items: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """[U] weights by which an item counts as one sample, however often and on how many ranks it stands. Collective.

    `items` [U] are the rank's, none of them 0.
    """
    found, counts = gather(items.unsqueeze(1), group).unique(return_counts=True)
    weights: Tensor = 1 / counts[torch.searchsorted(found, items)]
    return weights
