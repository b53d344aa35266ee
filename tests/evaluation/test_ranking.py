"""Ranking against a brute-force oracle, on one process and on real gloo ranks."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pad_dist.errors import UserError
from pad_dist.evaluation.metrics import rank_counts, summarize
from pad_dist.evaluation.ranking import MISSED, ItemSlice, gather_rows, lookup_columns, rank_targets
from tests.support.ranks import run_ranks

Case = tuple[Tensor, Tensor, list[list[int]], Tensor, Tensor]
BROKEN = "the model gives NaN or infinite scores: lower the learning rate and train again"
SHAPES = [(1, 12, 2), (7, 30, 3), (23, 101, 4), (64, 40, 1)]
"""Users, items, width."""


def case(users: int, items: int, dim: int, seed: int) -> Case:
    """Small integers, so that scores are exact and ties are many; some targets repeat the history.

    The candidates are about 80 % of the items; targets and history are among them, the others have the same vectors.
    """
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randint(-2, 3, (items + 1, dim), generator=generator).float()
    queries = torch.randint(-2, 3, (users, dim), generator=generator).float()
    candidates = (torch.randperm(items, generator=generator)[: max(1, 4 * items // 5)] + 1).sort().values
    targets = candidates[torch.randint(len(candidates), (users,), generator=generator)]
    sizes = torch.randint(1, 9, (users,), generator=generator).tolist()
    history = [candidates[torch.randint(len(candidates), (size,), generator=generator)].tolist() for size in sizes]
    return queries, targets, history, vectors, candidates


def oracle(
    queries: Tensor, targets: Tensor, history: list[list[int]], vectors: Tensor, candidates: Tensor
) -> list[int]:
    ranks = []
    for query, target, seen in zip(queries, targets.tolist(), history, strict=True):
        if target in seen:
            ranks.append(MISSED)
            continue
        score = {i: -math.inf if i in seen else float(query @ vectors[i]) for i in candidates.tolist()}
        others = [value for i, value in score.items() if i != target]
        ranks.append(1 + sum(v > score[target] for v in others) + sum(v == score[target] for v in others))
    return ranks


def every_item(vectors: Tensor) -> ItemSlice:
    """All items are candidates, for vectors [items + 1, D] with padding."""
    return ItemSlice(torch.arange(1, len(vectors)), vectors[1:])


def rank_all(
    queries: Tensor, targets: Tensor, history: list[list[int]], item_slice: ItemSlice, score_bytes: int = 1 << 28
) -> list[int]:
    flat = torch.tensor([i for seen in history for i in seen], dtype=torch.int64)
    lengths = torch.tensor([len(seen) for seen in history], dtype=torch.int64)
    return rank_targets(queries, targets, flat, lengths, item_slice, score_bytes=score_bytes).tolist()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("score_bytes", [1, 1000, 1 << 28])
def test_one_process_equals_the_oracle(shape: tuple[int, int, int], seed: int, score_bytes: int) -> None:
    queries, targets, history, vectors, candidates = case(*shape, seed)
    expected = oracle(queries, targets, history, vectors, candidates)
    assert rank_all(queries, targets, history, ItemSlice(candidates, vectors[candidates]), score_bytes) == expected


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_what_is_no_candidate_counts_for_nothing_wherever_it_stands(place: str) -> None:
    # Every item scores 1: a candidate too many would be one place too many.
    out = {"first": 1, "middle": 6, "last": 12}[place]
    candidates = torch.tensor([i for i in range(1, 13) if i != out])
    targets, history = candidates.clone(), [[int(i)] for i in candidates.roll(1)]
    found = rank_all(torch.ones(11, 1), targets, history, ItemSlice(candidates, torch.ones(11, 1)))
    assert found == [10] * 11
    # An event of an item that is no candidate any more masks nobody else.
    assert rank_all(torch.ones(1, 1), targets[:1], [[out]], ItemSlice(candidates, torch.ones(11, 1))) == [11]


CUTS = {"even": (0.5, 0.5), "a rank without items": (0.0, 0.2), "a rank without users": (0.9, 1.0)}
"""Share of the candidates and of the users that rank 0 holds."""


def everything_on_two_ranks() -> dict[str, Any]:
    """One launch for all distributed checks: starting processes is what takes the time."""
    rank = torch.distributed.get_rank()
    found = {name: [rank_share(rank, seed, *cuts) for seed in range(len(SHAPES))] for name, cuts in CUTS.items()}
    ties = [tied_items(rank, *shape) for shape in TIED_SLICES]
    return found | {"ties": ties, "broken": broken_slice(rank), "gathered": gathered_columns(rank)}


def rank_share(rank: int, seed: int, item_cut: float, user_cut: float) -> list[int]:
    queries, targets, history, vectors, candidates = case(*SHAPES[seed], seed)
    edge, user = int(item_cut * len(candidates)), int(user_cut * len(queries))
    mine = slice(0, user) if rank == 0 else slice(user, None)
    own = candidates[:edge] if rank == 0 else candidates[edge:]
    return rank_all(queries[mine], targets[mine], history[mine], ItemSlice(own, vectors[own]), score_bytes=500)


TIED_SLICES = [(1, 8, 192, 3), (1, 8, 192, 1), (6, 8, 64, 5), (11, 20, 64, 8), (50, 101, 16, 64), (999, 3001, 192, 1)]
"""Items of rank 0, of both ranks, width, users."""


def tied_items(rank: int, edge: int, items: int, dim: int, users: int) -> list[int]:
    """Every item has the same vector, the target is the last one; rank 0 gives the users."""
    vectors, queries = tied(items, dim, users)
    mine = slice(0, users if rank == 0 else 0)
    own = torch.arange(1, edge + 1) if rank == 0 else torch.arange(edge + 1, items + 1)
    item_slice = ItemSlice(own, vectors[own])
    targets = torch.full((users,), items)
    return rank_all(queries[mine], targets[mine], [[]] * len(queries[mine]), item_slice)


def tied(items: int, dim: int, users: int) -> tuple[Tensor, Tensor]:
    """Equal item vectors with padding, [items + 1, dim], and users whose scores must be rounded."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(dim, generator=generator).repeat(items + 1, 1), torch.randn(users, dim, generator=generator)


def broken_slice(rank: int) -> str:
    """Only rank 1's items are broken: both ranks must stop, or one would wait for ever."""
    queries, targets, history, vectors, candidates = case(7, 30, 3, 1)
    vectors[candidates[-1]] = math.nan
    own = candidates.chunk(2)[rank]
    try:
        rank_all(queries, targets, history, ItemSlice(own, vectors[own]))
    except UserError as error:
        return str(error)
    return "ranked"


def gathered_columns(rank: int) -> list[list[Any]]:
    columns = torch.stack([torch.arange(5) * 10, torch.arange(5) + 1], dim=1)
    first, stop = [(0, 3), (3, 5)][rank]
    found = []
    for parts in [[[4, 0, 1], [2]], [[], [3]], [[], []]]:
        items = gather_rows(torch.tensor(parts[rank], dtype=torch.int64))
        found.append([items.tolist(), lookup_columns(items, columns[first:stop], first).tolist()])
    return found


@pytest.fixture(scope="module")
def on_two() -> list[dict[str, Any]]:
    return run_ranks(everything_on_two_ranks, 2)


@pytest.mark.parametrize("cut", CUTS)
def test_two_ranks_equal_the_oracle(on_two: list[dict[str, Any]], cut: str) -> None:
    expected = [oracle(*case(*shape, seed)) for seed, shape in enumerate(SHAPES)]
    assert [found[cut] for found in on_two] == [expected, expected]


def test_equal_items_tie_across_slices_of_different_width(on_two: list[dict[str, Any]]) -> None:
    expected = [[items] * users for _, items, _, users in TIED_SLICES]
    assert [found["ties"] for found in on_two] == [expected, expected]


def test_a_broken_slice_stops_every_rank(on_two: list[dict[str, Any]]) -> None:
    assert [found["broken"] for found in on_two] == [BROKEN] * 2


def test_rows_and_columns_of_uneven_ranks_come_together(on_two: list[dict[str, Any]]) -> None:
    expected = [[[4, 0, 1, 2], [[40, 5], [0, 1], [10, 2], [20, 3]]], [[3], [[30, 4]]], [[], []]]
    assert [found["gathered"] for found in on_two] == [expected, expected]


def test_a_constant_scorer_never_hits() -> None:
    queries, targets, _, vectors, candidates = case(23, 101, 4, 0)
    ranks = rank_all(queries, targets, [[]] * 23, ItemSlice(candidates, torch.ones_like(vectors[candidates])))
    assert ranks == [len(candidates)] * 23
    none = torch.ones(23, dtype=torch.int64)
    assert summarize(rank_counts(torch.tensor(ranks), none, none, 5))["hr@10"] == 0


@pytest.mark.parametrize("users", [1, 5])
@pytest.mark.parametrize("score_bytes", [1, 1 << 28])
@pytest.mark.parametrize(("items", "dim"), [(2, 192), (17, 64), (3001, 192), (8347, 128)])
def test_equal_items_tie_however_many_users_a_chunk_has(items: int, dim: int, score_bytes: int, users: int) -> None:
    vectors, queries = tied(items, dim, users)
    for target in (1, items):
        targets = torch.full((users,), target)
        assert rank_all(queries, targets, [[]] * users, every_item(vectors), score_bytes) == [items] * users


@pytest.mark.parametrize("items", [2, 10, 50])
def test_a_target_that_the_history_holds_is_a_miss_in_a_catalogue_of_any_size(items: int) -> None:
    vectors = torch.arange(items + 1.0)[:, None]
    query, target = torch.ones(1, 1), torch.tensor([items])
    assert rank_all(query, target, [[items - 1]], every_item(vectors)) == [1]
    ranks = rank_all(query, target, [[1, items]], every_item(vectors))
    assert ranks == [MISSED]
    one = torch.ones(1, dtype=torch.int64)
    metrics = summarize(rank_counts(torch.tensor(ranks), one, one, 5))
    assert (metrics["users"], metrics["hr@10"], metrics["ndcg@10"]) == (1, 0.0, 0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["users", "items"])
def test_a_score_that_is_not_finite_is_refused(value: float, where: str) -> None:
    queries, targets, history, vectors, _ = case(7, 30, 3, 1)
    (queries if where == "users" else vectors)[4] = value
    with pytest.raises(UserError, match=BROKEN):
        rank_all(queries, targets, history, every_item(vectors))


def test_a_score_of_minus_infinity_alone_is_refused() -> None:
    # It would pass for an item of the history.
    vectors = torch.tensor([[0.0], [-math.inf], [2.0]])
    with pytest.raises(UserError, match=BROKEN):
        rank_all(torch.ones(1, 1), torch.tensor([2]), [[]], every_item(vectors))
