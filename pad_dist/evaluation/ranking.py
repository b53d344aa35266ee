"""Exact full-catalogue ranking over item vectors that stay sharded by rows (docs/method.md, "Evaluation")."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from pad_dist.errors import UserError

SCORE_BYTES = 1 << 26
"""Most bytes of one users x items score matrix (at least two rows are taken)."""
MISSED = torch.iinfo(torch.int64).max
"""Rank of a target that the history holds: beyond every k, however small the catalogue."""
_WIDTH = 64
_COUNTED = 1 << 13
"""Columns that are counted at a time: counting turns what it compares into int64."""


class Users(NamedTuple):
    """Users to rank for, those of all ranks in rank order.

    Attributes:
        vectors: [b, C], the experts' vectors side by side.
        targets: [b] item_index of the held-out item, a candidate.
        history: [H] item_index of each user's earlier items, end to end.
        history_lengths: [b] earlier items per user.
    """

    vectors: Tensor
    targets: Tensor
    history: Tensor
    history_lengths: Tensor


class Block(NamedTuple):
    """Candidates of one rank that are scored together.

    Attributes:
        items: [n] item_index, ascending, in no other block of any rank; n may be 0.
        vectors: {scorer: [width, its D]}, zeros after the first n.
    """

    items: Tensor
    vectors: dict[str, Tensor]


@dataclass(frozen=True)
class Candidates:
    """What one rank scores, block by block: an item in no block of any rank is never ranked.

    Attributes:
        blocks: how many there are, the same on every rank.
        read: makes block 0, 1, ..., all of `common_width`; may be collective.
    """

    blocks: int
    read: Callable[[int], Block]


@torch.no_grad()
def rank_targets(
    queries: Mapping[str, Tensor],
    users: Users,
    candidates: Candidates,
    group: dist.ProcessGroup | None = None,
    score_bytes: int = SCORE_BYTES,
) -> dict[str, Tensor]:
    """Rank of each target among all candidates, for each scorer: 1 + #greater + #equal (other) items.

    A collective call with the same users on every rank (see `gather_rows`). Each rank
    scores them against its own items; counts are summed over ranks. Items of the
    history score -inf; a target among them has rank MISSED.

    Of one block each product is taken once. Of several, which are made anew each time,
    a first pass finds the targets' scores, from the very products that the second
    compares with them. It takes only those of chunks of users with a target in the
    block: few, where users come in the order of their targets.

    Items with equal vectors tie, and count against the target, as long as the matrix
    product rounds equal columns alike (see `common_width`). BLAS libraries do not
    promise it, and ranks on different hardware may round differently.

    Args:
        queries: {scorer: [b, its D]} user vectors, of the same dtype as its item vectors.
        group: None is the default group, or this process alone where none is initialised.

    Returns:
        {scorer: [b] int64}, the same on every rank.

    Raises:
        UserError: on every rank, if any score is NaN or infinite (a comparison
            with NaN is false and would help the target).
    """
    targets, history = users.targets, users.history
    owners = torch.repeat_interleave(torch.arange(len(targets), device=targets.device), users.history_lengths)
    starts = [0, *users.history_lengths.cumsum(0).tolist()]
    own_score = {name: rows.new_full((len(rows),), -torch.inf) for name, rows in queries.items()}
    ranks = {name: torch.zeros_like(targets) for name in queries}
    broken = torch.zeros((), dtype=torch.int64, device=targets.device)

    def find(block: Block) -> None:
        places = _places(block.items, targets)
        for name, chunk in _chunks(queries, block, score_bytes):
            if (places[chunk] >= 0).any():
                scores = _scores(queries[name][chunk], block.vectors[name])
                own_score[name][chunk] = own_score[name][chunk].maximum(_owned(scores, places[chunk]))

    def count(block: Block) -> None:
        places, seen_places = _places(block.items, targets), _places(block.items, history)
        # Every rank takes the same chunks, since with one block each ends in a collective.
        for name, chunk in _chunks(queries, block, score_bytes):
            scores = _scores(queries[name][chunk], block.vectors[name])
            broken.add_(~_all_finite(scores))  # with the padding: without it they would be copied
            scores = scores[:, : len(block.items)]
            past = slice(starts[chunk.start], starts[chunk.stop])
            mine = seen_places[past] >= 0
            scores[owners[past][mine] - chunk.start, seen_places[past][mine]] = -torch.inf
            if candidates.blocks == 1:
                own_score[name][chunk] = all_reduce(_owned(scores, places[chunk]), dist.ReduceOp.MAX, group)
            # The target itself is among the scores >= its own: this is the 1 of the formula.
            for part in scores.split(_COUNTED, dim=1):
                ranks[name][chunk] += (part >= own_score[name][chunk, None]).sum(1)

    if candidates.blocks > 1:
        for number in range(candidates.blocks):
            find(candidates.read(number))
        for scores in own_score.values():
            all_reduce(scores, dist.ReduceOp.MAX, group)
    for number in range(candidates.blocks):
        count(candidates.read(number))
    if all_reduce(broken, dist.ReduceOp.SUM, group):
        raise UserError("the model gives NaN or infinite scores: lower the learning rate and train again")
    missed = owners[history == targets[owners]]
    for counts in ranks.values():
        all_reduce(counts, dist.ReduceOp.SUM, group)[missed] = MISSED
    return ranks


@torch.no_grad()
def log_partitions(
    queries: Mapping[str, Tensor], candidates: Candidates, group: dist.ProcessGroup | None = None
) -> Tensor:
    """Log of the sum of exp score over all candidates of all ranks, for each scorer. Collective.

    Args:
        queries: {scorer: [b, its D]} user vectors, the same on every rank.

    Returns:
        [b, scorers] fp64 in the order of the queries, the same on every rank.
    """
    totals = {n: torch.full((len(q),), -torch.inf, dtype=torch.float64, device=q.device) for n, q in queries.items()}
    for number in range(candidates.blocks):
        block = candidates.read(number)
        for name, chunk in _chunks(queries, block, SCORE_BYTES):
            scores = _scores(queries[name][chunk], block.vectors[name])[:, : len(block.items)]
            totals[name][chunk] = torch.logaddexp(totals[name][chunk], scores.logsumexp(dim=1).double())
    total = torch.stack([*totals.values()], dim=1)
    highest = all_reduce(total.clone(), dist.ReduceOp.MAX, group)
    return all_reduce((total - highest).exp(), dist.ReduceOp.SUM, group).log() + highest


def reordered(users: Users, order: Tensor) -> Users:
    """The same users in another order, [b] the place of each before."""
    owners = torch.repeat_interleave(order.argsort(), users.history_lengths)
    history = users.history[owners.argsort(stable=True)]
    return Users(users.vectors[order], users.targets[order], history, users.history_lengths[order])


def common_width(count: Tensor, group: dist.ProcessGroup | None = None) -> int:
    """Rows that the vectors of every block have, from `count` [], the most items of a block on this rank. Collective.

    A matrix product chooses its kernel, and with it the rounding, by the shape: so it is one on all ranks and for
    all blocks, and a multiple of 64, since kernels may sum what is left over in another order than the rest.
    """
    return -(-int(all_reduce(count, dist.ReduceOp.MAX, group)) // _WIDTH) * _WIDTH


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


def lookup_columns(
    items: Tensor, columns: Sequence[Tensor], first: int, group: dist.ProcessGroup | None = None
) -> Tensor:
    """Values of `items` from columns that are sharded by rows.

    Args:
        items: [b] item_index, the same on every rank (see `gather_rows`).
        columns: C times [n] integers of this rank's items, such as frequency and bin, on any device.
        first: item_index of the first row; slices must not overlap.

    Returns:
        [b, C] int64, the same on every rank.
    """
    values = items.new_zeros((len(items), len(columns)))
    mine = (items >= first) & (items < first + len(columns[0]))
    for place, column in enumerate(columns):
        values[mine, place] = column[(items[mine] - first).to(column.device)].to(values)
    return all_reduce(values, dist.ReduceOp.SUM, group)


def _chunks(queries: Mapping[str, Tensor], block: Block, score_bytes: int) -> Iterator[tuple[str, slice]]:
    """Each scorer with each range of users that are scored at a time."""
    for name, rows in queries.items():
        vectors = block.vectors[name]
        size = max(1, score_bytes // max(1, len(vectors) * vectors.element_size()))
        for start in range(0, len(rows), size):
            yield name, slice(start, min(start + size, len(rows)))


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


def all_reduce(values: Tensor, operation: dist.ReduceOp.RedOpType, group: dist.ProcessGroup | None) -> Tensor:
    """Reduce over ranks, in place, returned for convenience; alone, nothing."""
    if dist.is_initialized():
        dist.all_reduce(values, operation, group=group)
    return values
