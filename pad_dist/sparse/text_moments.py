"""Mean and covariance of a sharded table of text vectors: ranks sum over their rows, which stay in place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from pad_dist.errors import UserError
from pad_dist.sparse.row_shards import RowShards

_BLOCK_ROWS = 1 << 14
_LEAST_VARIANCE = 1e-9
"""Below the rounding errors of unit vectors in float16."""


@dataclass(frozen=True)
class Moments:
    """Moments of the non-zero rows, in float64.

    Attributes:
        mean: [C].
        variance: mean variance of a column.
        covariance: [C, C], or None if it was not asked for.
    """

    mean: Tensor
    variance: float
    covariance: Tensor | None


def moments(shards: RowShards, dataset: str, *, covariance: bool) -> Moments:
    """Moments over all ranks' rows of a dataset's texts, the same on each. Collective.

    Raises:
        UserError: all vectors are the same.
    """
    dim = shards.local.shape[1]
    sums = torch.zeros(2 * dim + 1, dtype=torch.float64, device=shards.local.device)
    for block in shards.local.split(_BLOCK_ROWS):
        rows = block.double()
        sums += torch.cat([rows.sum(0), rows.square().sum(0), rows.any(1).sum()[None]])
    _sum(sums, shards)
    mean, squares = (sums[:-1] / sums[-1]).split(dim)
    variance = (squares - mean.square()).mean().item()
    # Not `<`, which is false too for the NaN of a catalogue without any text.
    if not variance >= _LEAST_VARIANCE:
        raise UserError(
            f"all texts of {dataset} have the same vector: check data.columns.text, or use text.transform=none and a "
            "method other than llm_init"
        )
    products = None
    if covariance:
        products = sums.new_zeros(dim, dim)
        for block in shards.local.split(_BLOCK_ROWS):
            rows = (block.double() - mean) * block.any(1, keepdim=True)
            products.addmm_(rows.T, rows)
        _sum(products, shards)
        products /= sums[-1]
    return Moments(mean, variance, products)


def spectrum(shards: RowShards, stats: Moments) -> tuple[Tensor, Tensor]:
    """Variances [C], largest first, and their directions, the columns of [C, C]. Collective.

    The sign of a direction makes its largest component positive. All ranks take the first rank's directions, because
    other machines may rotate directions of equal variance.
    """
    assert stats.covariance is not None
    variances, directions = torch.linalg.eigh(stats.covariance)
    variances, directions = variances.flip(0).clamp(min=0), directions.flip(1)
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    both = torch.cat([variances[None], directions * largest.sign()])
    if shards.group is not None:
        dist.broadcast(both, dist.get_global_rank(shards.group, 0), group=shards.group)
    return both[0], both[1:]


def _sum(values: Tensor, shards: RowShards) -> None:
    if shards.group is not None:
        dist.all_reduce(values, group=shards.group)
