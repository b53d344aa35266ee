"""What the test of ranks runs on each of them."""

from __future__ import annotations

import torch
import torch.distributed as dist

from pad_dist.training.ranks import Ranks


def found_by_the_first() -> str:
    """Each rank would find something else."""
    assert dist.group.WORLD is not None
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), torch.device("cpu"), dist.group.WORLD)
    return ranks.from_first(lambda: f"version of rank {ranks.rank}")
