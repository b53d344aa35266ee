"""Exact full-catalogue ranking over item vectors that stay sharded by rows (METHOD, evaluation)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from pad_dist.errors import UserError

SCORE_BYTES = 1 << 28
"""Most bytes of one users x items score matrix (at least two rows are taken)."""
MISSED = torch.iinfo(torch.int64).max
"""Rank of a target that the history holds: beyond every k, however small the catalogue."""


@dataclass(frozen=True)
class ItemSlice:
    """The candidates that one rank scores.

    An item in no rank's slice is never ranked: padding, and items that are out of use.

    Attributes:
        items: [n] item_index, ascending, in no other rank's slice; n may be 0.
        vectors: [n, D].
    """

    items: Tensor
    vectors: Tensor


@torch.no_grad()
def rank_targets(
    users: Tensor,
    targets: Tensor,
    history: Tensor,
    history_lengths: Tensor,
    item_slice: ItemSlice,
    group: dist.ProcessGroup | None = None,
    score_bytes: int = SCORE_BYTES,
) -> Tensor:
    """Rank of each target among all candidates: 1 + #greater + #equal (other) items.

    A collective call. Each rank gives its own users (b may differ and be 0) and
    scores everyone's users against its own items; counts are summed over ranks.
    Items of the history score -inf; a target among them has rank MISSED.

    Items with equal vectors tie, and count against the target, as long as the matrix
    product rounds equal columns alike. Every rank multiplies matrices of the same
    shape to that end. BLAS libraries do not promise it, and ranks on different
    hardware may round differently.

    Args:
        users: [b, D] user vectors of this rank.
        targets: [b] item_index of the held-out item, a candidate.
        history: [H] item_index of each user's earlier items, end to end.
        history_lengths: [b] earlier items per user.
        item_slice: this rank's candidates, vectors of the same dtype as `users`.
        group: None is the default group, or this process alone where none is initialised.

    Returns:
        [sum of b over ranks] int64, users in rank order, the same on every rank.

    Raises:
        UserError: on every rank, if any score is NaN or infinite (a comparison
            with NaN is false and would help the target).
    """
    vectors = item_slice.vectors
    users, targets = gather_rows(users, group), gather_rows(targets, group)
    history, history_lengths = gather_rows(history, group), gather_rows(history_lengths, group)
    owners = torch.repeat_interleave(torch.arange(len(users), device=users.device), history_lengths)
    target_places, seen_places = _places(item_slice.items, targets), _places(item_slice.items, history)

    # Every rank takes the same chunks, since each ends in a collective, and the same width:
    # a matrix product chooses its kernel, and with it the rounding, by the shape.
    count = len(vectors)
    widest = int(_all_reduce(torch.tensor(count, device=users.device), dist.ReduceOp.MAX, group))
    if count < widest:
        vectors = F.pad(vectors, (0, 0, 0, widest - count))
    chunk = max(1, score_bytes // max(1, widest * vectors.element_size()))
    broken = torch.zeros((), dtype=torch.int64, device=users.device)
    ranks = torch.zeros(len(users), dtype=torch.int64, device=users.device)
    for start in range(0, len(users), chunk):
        stop = min(start + chunk, len(users))
        scores = _scores(users[start:stop], vectors)[:, :count]
        broken += ~_all_finite(scores)
        mine = (owners >= start) & (owners < stop) & (seen_places >= 0)
        scores[owners[mine] - start, seen_places[mine]] = -torch.inf
        target = _owned(scores, target_places[start:stop])
        target = _all_reduce(target, dist.ReduceOp.MAX, group)
        # The target itself is among the scores >= its own: this is the 1 of the formula.
        ranks[start:stop] = (scores >= target[:, None]).sum(1)
    if _all_reduce(broken, dist.ReduceOp.SUM, group):
        raise UserError("the model gives NaN or infinite scores: lower the learning rate and train again")
    ranks = _all_reduce(ranks, dist.ReduceOp.SUM, group)
    ranks[owners[history == targets[owners]]] = MISSED
    return ranks


def gather_rows(rows: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Concatenate every rank's rows, [b, ...] with b from 0 upwards, in rank order."""
    if not dist.is_initialized():
        return rows
    sizes = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, torch.tensor([len(rows)], device=rows.device), group=group)
    counts = [int(size) for size in sizes]
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def lookup_columns(items: Tensor, columns: Tensor, first: int, group: dist.ProcessGroup | None = None) -> Tensor:
    """Values of `items` from columns that are sharded by rows.

    Args:
        items: [b] item_index, the same on every rank (see `gather_rows`).
        columns: [n, C] integer columns of this rank's items, such as frequency and bin.
        first: item_index of the first row; slices must not overlap.

    Returns:
        [b, C], the same on every rank.
    """
    values = columns.new_zeros((len(items), columns.shape[1]))
    mine = (items >= first) & (items < first + len(columns))
    values[mine] = columns[items[mine] - first]
    return _all_reduce(values, dist.ReduceOp.SUM, group)


def _scores(users: Tensor, vectors: Tensor) -> Tensor:
    """[b, n] inner products. A single row would be a matrix-vector product, whose kernels sum
    the last columns in another order than the others: equal items would not tie. So it is taken twice."""
    if len(users) == 1:
        return (users.repeat(2, 1) @ vectors.T)[:1]
    return users @ vectors.T


def _places(items: Tensor, wanted: Tensor) -> Tensor:
    """[m] row in `items` (ascending) of each wanted item, -1 where it is in none."""
    places = torch.searchsorted(items, wanted)
    return places.where(F.pad(items, (0, 1), value=-1)[places] == wanted, -1)


def _owned(scores: Tensor, places: Tensor) -> Tensor:
    """[b] score at each place, -inf where the place is -1."""
    own = places >= 0
    target = torch.full((len(scores),), -torch.inf, dtype=scores.dtype, device=scores.device)
    target[own] = scores[own, places[own]]
    return target


def _all_finite(scores: Tensor) -> Tensor:
    if not scores.numel():
        return torch.ones((), dtype=torch.bool, device=scores.device)
    low, high = scores.aminmax()  # both are NaN if any score is
    return low.isfinite() & high.isfinite()


def _all_reduce(values: Tensor, operation: dist.ReduceOp.RedOpType, group: dist.ProcessGroup | None) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(values, operation, group=group)
    return values
