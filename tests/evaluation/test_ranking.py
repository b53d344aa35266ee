"""Ranking against a brute-force oracle, on one process and on real gloo ranks."""

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from pad_dist.errors import UserError
from pad_dist.evaluation.metrics import rank_counts, summarize
from pad_dist.evaluation.ranking import (
    MISSED,
    Block,
    Candidates,
    Users,
    common_width,
    gather_rows,
    log_partitions,
    lookup_columns,
    rank_targets,
    reordered,
)
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.slow

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
    history = [candidates[torch.randint(len(candidates), (n,), generator=generator)].tolist() for n in sizes]
    return queries, targets, history, vectors, candidates


def oracle(queries: Tensor, targets: Tensor, history: list[list[int]], vectors: Tensor, items: Tensor) -> list[int]:
    target_ranks = []
    for query, target, seen in zip(queries, targets.tolist(), history, strict=True):
        if target in seen:
            target_ranks.append(MISSED)
            continue
        score = {i: -math.inf if i in seen else float(query @ vectors[i]) for i in items.tolist()}
        others = [value for i, value in score.items() if i != target]
        target_ranks.append(1 + sum(v > score[target] for v in others) + sum(v == score[target] for v in others))
    return target_ranks


def rank_all(
    queries: Tensor,
    targets: Tensor,
    history: list[list[int]],
    items: Tensor,
    vectors: Tensor,
    score_bytes: int = 1 << 28,
    blocks: int = 1,
) -> list[int]:
    """Target ranks of these users among candidates (vectors [items + 1, D] are those of all items), cut into blocks."""
    flat = torch.tensor([i for seen in history for i in seen], dtype=torch.int64)
    lengths = torch.tensor([len(seen) for seen in history], dtype=torch.int64)
    users = Users(*map(gather_rows, (queries, targets, flat, lengths)))
    candidates = candidates_of(items, vectors, blocks)
    order = users.targets.argsort(stable=True)
    if blocks > 1:
        users = reordered(users, users.targets.argsort(stable=True))
    target_ranks = rank_targets({"id": users.vectors}, users, candidates, score_bytes=score_bytes)["id"]
    if blocks > 1:
        target_ranks = target_ranks[order.argsort()]
    return target_ranks.tolist()


def candidates_of(items: Tensor, vectors: Tensor, blocks: int) -> Candidates:
    """This rank's items, cut into blocks; vectors [items + 1, D] are those of all."""
    parts = items.tensor_split(blocks)
    width = common_width(torch.tensor(max(map(len, parts))))

    def read(number: int) -> Block:
        part = parts[number]
        return Block(part, {"id": F.pad(vectors[part], (0, 0, 0, width - len(part)))})

    return Candidates(blocks, read)


def every_item(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """All items are candidates, for vectors [items + 1, D] with padding."""
    return torch.arange(1, len(vectors)), vectors


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("score_bytes", [1, 1000, 1 << 28])
@pytest.mark.parametrize("blocks", [1, 3, 50])
def test_one_process_equals_the_oracle(shape: tuple[int, int, int], seed: int, score_bytes: int, blocks: int) -> None:
    queries, targets, history, vectors, candidates = case(*shape, seed)
    expected = oracle(queries, targets, history, vectors, candidates)
    assert rank_all(queries, targets, history, candidates, vectors, score_bytes, blocks) == expected


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_what_is_no_candidate_counts_for_nothing_wherever_it_stands(place: str) -> None:
    # Every item scores 1: a candidate too many would be one place too many.
    out = {"first": 1, "middle": 6, "last": 12}[place]
    candidates = torch.tensor([i for i in range(1, 13) if i != out])
    targets, history = candidates.clone(), [[int(i)] for i in candidates.roll(1)]
    for blocks in (1, 4):
        results = rank_all(torch.ones(11, 1), targets, history, candidates, torch.ones(13, 1), blocks=blocks)
        assert results == [10] * 11
        # An event of an item that is no candidate any more masks nobody else.
        results = rank_all(torch.ones(1, 1), targets[:1], [[out]], candidates, torch.ones(13, 1), blocks=blocks)
        assert results == [11]


CUTS = {"even": (0.5, 0.5), "a rank without items": (0.0, 0.2), "a rank without users": (0.9, 1.0)}
"""Share of the candidates and of the users that rank 0 holds; of three ranks the last two halve the rest."""
BLOCKS = (1, 5, 30)
"""Blocks of the candidates of every rank; of 30 some are empty."""


def everything_on_ranks() -> dict[str, Any]:
    """One launch for all distributed checks: starting processes is what takes the time."""
    results = {
        f"{name} {blocks}": [rank_share(seed, *cuts, blocks) for seed in range(len(SHAPES))]
        for name, cuts in CUTS.items()
        for blocks in BLOCKS
    }
    ties = {f"ties {blocks}": [tied_items(*shape, blocks) for shape in TIED_SLICES] for blocks in BLOCKS[:2]}
    broken = {f"broken {blocks}": broken_slice(blocks) for blocks in BLOCKS}
    partitions = {
        f"partitions {name} {blocks}": partition_share(cuts[0], blocks)
        for name, cuts in CUTS.items()
        for blocks in BLOCKS
    }
    return results | ties | broken | partitions | {"gathered": gathered_columns()}


def own_part(count: int, cut: int) -> slice:
    """This rank's part of `count` things, of which rank 0 has the first `cut`."""
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    ends = [0, cut, *([cut + (count - cut) // 2] if last == 2 else []), count]
    return slice(ends[rank], ends[rank + 1])


def rank_share(seed: int, item_cut: float, user_cut: float, blocks: int) -> list[int]:
    queries, targets, history, vectors, candidates = case(*SHAPES[seed], seed)
    mine = own_part(len(queries), int(user_cut * len(queries)))
    own = candidates[own_part(len(candidates), int(item_cut * len(candidates)))]
    return rank_all(queries[mine], targets[mine], history[mine], own, vectors, score_bytes=500, blocks=blocks)


def partition_share(cut: float, blocks: int) -> list[float]:
    queries, _, _, vectors, candidates = case(23, 101, 4, 2)
    own = candidates[own_part(len(candidates), int(cut * len(candidates)))]
    return log_partitions({"id": 9 * queries}, candidates_of(own, vectors, blocks))[:, 0].tolist()


TIED_SLICES = [(1, 8, 192, 3), (1, 8, 192, 1), (6, 8, 64, 5), (11, 20, 64, 8), (50, 101, 16, 64), (999, 3001, 192, 1)]
"""Items of rank 0, of all ranks, width, users."""


def tied_items(edge: int, items: int, dim: int, users: int, blocks: int) -> list[int]:
    """Every item has the same vector, the target is the last one; rank 0 gives the users."""
    vectors, queries = tied(items, dim, users)
    mine = own_part(users, users)
    targets = torch.full((users,), items)
    own = torch.arange(1, items + 1)[own_part(items, edge)]
    return rank_all(queries[mine], targets[mine], [[]] * len(queries[mine]), own, vectors, blocks=blocks)


def tied(items: int, dim: int, users: int) -> tuple[Tensor, Tensor]:
    """Equal item vectors with padding, [items + 1, dim], and users whose scores must be rounded."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(dim, generator=generator).repeat(items + 1, 1), torch.randn(users, dim, generator=generator)


def broken_slice(blocks: int) -> str:
    """Only the last rank's items are broken: all ranks must stop, or one would wait for ever."""
    queries, targets, history, vectors, candidates = case(7, 30, 3, 1)
    vectors[candidates[-1]] = math.nan
    own = candidates[own_part(len(candidates), 10)]
    try:
        rank_all(queries, targets, history, own, vectors, blocks=blocks)
    except UserError as error:
        return str(error)
    return "ranked"


def gathered_columns() -> list[list[Any]]:
    columns = torch.stack([torch.arange(5) * 10, torch.arange(5) + 1], dim=1)
    own = own_part(5, 3)
    parts = [column[own] for column in columns.unbind(1)]
    results = []
    for wanted in [[[4, 0, 1], [2], []], [[], [3], []], [[], [], []]]:
        items = gather_rows(torch.tensor(wanted[dist.get_rank()], dtype=torch.int64))
        results.append([items.tolist(), lookup_columns(items, parts, own.start).tolist()])
    return results


@pytest.fixture(scope="module", params=[2, 3])
def on_ranks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return run_ranks(everything_on_ranks, request.param)


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("cut", CUTS)
def test_any_ranks_and_blocks_equal_the_oracle(on_ranks: list[dict[str, Any]], cut: str, blocks: int) -> None:
    expected = [oracle(*case(*shape, seed)) for seed, shape in enumerate(SHAPES)]
    assert [results[f"{cut} {blocks}"] for results in on_ranks] == [expected] * len(on_ranks)


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("cut", CUTS)
def test_log_partitions_are_over_the_candidates_of_all_ranks(
    on_ranks: list[dict[str, Any]], cut: str, blocks: int
) -> None:
    queries, _, _, vectors, candidates = case(23, 101, 4, 2)
    expected = (9 * queries @ vectors[candidates].T).double().logsumexp(1).tolist()
    for results in on_ranks:
        assert results[f"partitions {cut} {blocks}"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("blocks", BLOCKS[:2])
def test_equal_items_tie_across_slices_and_blocks_of_different_width(
    on_ranks: list[dict[str, Any]], blocks: int
) -> None:
    expected = [[items] * users for _, items, _, users in TIED_SLICES]
    assert [results[f"ties {blocks}"] for results in on_ranks] == [expected] * len(on_ranks)


@pytest.mark.parametrize("blocks", BLOCKS)
def test_a_broken_slice_stops_every_rank(on_ranks: list[dict[str, Any]], blocks: int) -> None:
    assert [results[f"broken {blocks}"] for results in on_ranks] == [BROKEN] * len(on_ranks)


def test_rows_and_columns_of_uneven_ranks_come_together(on_ranks: list[dict[str, Any]]) -> None:
    expected = [[[4, 0, 1, 2], [[40, 5], [0, 1], [10, 2], [20, 3]]], [[3], [[30, 4]]], [[], []]]
    assert [results["gathered"] for results in on_ranks] == [expected] * len(on_ranks)


def test_a_constant_scorer_never_hits() -> None:
    queries, targets, _, vectors, candidates = case(23, 101, 4, 0)
    target_ranks = rank_all(queries, targets, [[]] * 23, candidates, torch.ones_like(vectors))
    assert target_ranks == [len(candidates)] * 23
    none = torch.ones(23, dtype=torch.int64)
    assert summarize(rank_counts(torch.tensor(target_ranks), none, none, 5))["hr@10"] == 0


@pytest.mark.parametrize("users", [1, 5])
@pytest.mark.parametrize("score_bytes", [1, 1 << 28])
@pytest.mark.parametrize("blocks", [1, 2, 7])
@pytest.mark.parametrize(("items", "dim"), [(2, 192), (17, 64), (3001, 192), (8347, 128)])
def test_equal_items_tie_however_many_users_a_chunk_or_items_a_block_has(
    items: int, dim: int, blocks: int, score_bytes: int, users: int
) -> None:
    vectors, queries = tied(items, dim, users)
    for target in (1, items):
        targets = torch.full((users,), target)
        assert rank_all(queries, targets, [[]] * users, *every_item(vectors), score_bytes, blocks) == [items] * users


@pytest.mark.parametrize("items", [2, 10, 50])
def test_a_target_that_the_history_holds_is_a_miss_in_a_catalogue_of_any_size(items: int) -> None:
    vectors = torch.arange(items + 1.0)[:, None]
    query, target = torch.ones(1, 1), torch.tensor([items])
    assert rank_all(query, target, [[items - 1]], *every_item(vectors)) == [1]
    target_ranks = rank_all(query, target, [[1, items]], *every_item(vectors))
    assert target_ranks == [MISSED]
    one = torch.ones(1, dtype=torch.int64)
    metrics = summarize(rank_counts(torch.tensor(target_ranks), one, one, 5))
    assert (metrics["users"], metrics["hr@10"], metrics["ndcg@10"]) == (1, 0.0, 0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["users", "items"])
def test_a_score_that_is_not_finite_is_refused(value: float, where: str) -> None:
    queries, targets, history, vectors, _ = case(7, 30, 3, 1)
    (queries if where == "users" else vectors)[4] = value
    with pytest.raises(UserError, match=BROKEN):
        rank_all(queries, targets, history, *every_item(vectors))


def test_a_score_of_minus_infinity_alone_is_refused() -> None:
    # It would pass for an item of the history.
    vectors = torch.tensor([[0.0], [-math.inf], [2.0]])
    with pytest.raises(UserError, match=BROKEN):
        rank_all(torch.ones(1, 1), torch.tensor([2]), [[]], *every_item(vectors))
