"""Exact full-catalogue evaluation of a stage on all ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pad_dist.data.loader import eval_batches
from pad_dist.distributed.context import DistributedContext
from pad_dist.errors import UserError
from pad_dist.evaluation.metrics import COUNTS_SHAPE, rank_counts, summarize
from pad_dist.evaluation.ranking import (
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
from pad_dist.evaluation.report import SPLITS, Split
from pad_dist.evaluation.target_ranks import SplitTargetRanks, TargetRankRecorder
from pad_dist.model.recommender import Recommender, mixture_users
from pad_dist.sparse.row_shards import row_range
from pad_dist.stages.spec import StageSpec
from pad_dist.stages.stage_runtime import StageRuntime, load_trained

Metrics = dict[str, Any]
LOOKUP_ROWS = 1 << 16
"""Catalogue rows looked up at a time: bounds the memory of an all-to-all."""
VECTOR_BYTES = 1 << 28
"""Most bytes of item vectors that a rank holds; a catalogue that needs more is made anew for each group of users."""
USER_BYTES = 1 << 26
"""About the bytes of a group of users: their vectors and histories."""


def validate(runtime: StageRuntime, model: Recommender) -> Metrics:
    """Validation metrics of the score that selects the stage's checkpoint. Collective."""
    return evaluate(runtime, model, "valid", [runtime.spec.main_scorer])[runtime.spec.main_scorer]


def evaluate_stage(
    spec: StageSpec, context: DistributedContext
) -> tuple[dict[str, dict[str, Metrics]], dict[str, SplitTargetRanks]]:
    """All scores of a trained stage: {scorer: {split: metrics}}, and on the first process all target ranks by split.

    Collective.
    """
    runtime = load_trained(spec, context)
    model = runtime.model.eval()
    names = scorers_of(model)
    # Only the first rank keeps an integer for each user and scorer.
    recorders = {split: TargetRankRecorder(names, runtime.dataset.users if context.is_first else 0) for split in SPLITS}
    by_split: dict[str, dict[str, Metrics]] = {
        split: evaluate(runtime, model, split, names, recorders[split] if context.is_first else None)
        for split in SPLITS
    }
    scores: dict[str, dict[str, Metrics]] = {
        name: {s: metrics[name] for s, metrics in by_split.items()} for name in names
    }
    return scores, {split: recorder.result() for split, recorder in recorders.items()}


def scorers_of(model: Recommender) -> list[str]:
    """What a stage can be ranked by, see `evaluate`: each expert, their mixture if there are several, popularity."""
    return [*model.names, *(["mixture"] if len(model.names) > 1 else []), "popularity"]


@torch.no_grad()
def evaluate(
    runtime: StageRuntime,
    model: Recommender,
    split: Split,
    scorers: Sequence[str],
    recorder: TargetRankRecorder | None = None,
) -> dict[str, Metrics]:
    """Rank the held-out item of every user who has one among the whole catalogue, once per scorer. Collective.

    Items of bin 0 are no candidates: padding, and what is out of use.

    Scorers: an expert's name; "mixture", weighed, as one inner product; "popularity",
    train frequency, the same for every user. `recorder` learns every user's, in the order of the dataset.

    Raises:
        UserError: on every rank, if no user has a target of the split.
        Preempted: see `DistributedContext.proceed`.
    """
    context, bins = runtime.context, runtime.bins
    frequency = torch.from_numpy(runtime.dataset.item_columns(bins.start, bins.stop)[0])
    candidates = _candidates(runtime, model, scorers, frequency)
    counts = {name: torch.zeros(COUNTS_SHAPE, dtype=torch.float64, device=context.device) for name in scorers}
    several = candidates.blocks > 1
    for users in _user_groups(runtime, model, split, USER_BYTES if several else 0):
        # With one block users stay as they come, a batch at a time.
        order = users.targets.argsort(stable=True) if several else None
        users = users if order is None else reordered(users, order)
        seen, bin_of = lookup_columns(users.targets, (frequency, bins.local[:, 0]), bins.start, context.group).unbind(1)
        constant = torch.ones(len(seen), 1, dtype=torch.float64, device=context.device)
        alone = model.split_by_expert(users.vectors)
        queries = {n: alone[n] for n in scorers if n in alone}
        if "popularity" in scorers:
            queries["popularity"] = constant
        if "mixture" in scorers:
            partitions = log_partitions(alone, candidates, context.group) if model.log_mix else None
            queries["mixture"] = mixture_users(users.vectors, partitions, model.lifts)
        target_ranks = rank_targets(queries, users, candidates, context.group)
        for name, places in target_ranks.items():
            counts[name] += rank_counts(places, seen, bin_of, runtime.config.evaluation.cold_max_frequency)
        if recorder is not None:
            back = slice(None) if order is None else order.argsort()
            recorder.add({name: places[back] for name, places in target_ranks.items()}, seen[back], bin_of[back])
    metrics = {name: summarize(total) for name, total in counts.items()}
    if not all(values["users"] for values in metrics.values()):
        raise UserError(
            f"{runtime.dataset.url}: no user has a {split} target, an event of that time after an earlier one: "
            "change data.split and build the dataset again"
        )
    return metrics


def _user_groups(runtime: StageRuntime, model: Recommender, split: Split, least_bytes: int) -> Iterator[Users]:
    """All users who have a target, in groups of whole batches of more than `least_bytes`. Collective."""
    context, waiting = runtime.context, list[Users]()
    for host_batch in eval_batches(
        runtime.dataset,
        split,
        batch_size=runtime.config.evaluation.batch_size,
        max_length=runtime.config.model.max_length,
        rank=context.rank,
        world_size=context.world_size,
    ):
        context.proceed(f"scores users, {split}")
        batch = runtime.eval_to_device(host_batch)
        vectors = model.encode(batch.inputs, batch.lengths, runtime.rows(batch.items))
        own = Users(vectors, batch.targets, batch.history, batch.history_lengths)
        waiting.append(Users(*(gather_rows(part, context.group) for part in own)))
        if sum(part.nbytes for users in waiting for part in users) > least_bytes:
            yield Users(*map(torch.cat, zip(*waiting, strict=True)))
            waiting = []
    if waiting:
        yield Users(*map(torch.cat, zip(*waiting, strict=True)))


def _candidates(runtime: StageRuntime, model: Recommender, scorers: Sequence[str], frequency: Tensor) -> Candidates:
    """This rank's items in use, in the fewest blocks that VECTOR_BYTES allows. Collective."""
    context, bins = runtime.context, runtime.bins.local[:, 0]
    dtype = next(model.parameters()).dtype
    widths = {str(name): model.expert(name).dim for name in model.names}
    widths["mixture"] = sum(widths.values()) + model.extra_columns
    if "mixture" in scorers and model.log_mix:
        scorers = [*dict.fromkeys([*scorers, *model.names])]  # what the mixture's log-partitions are taken of
    shapes = {name: (1, torch.float64) if name == "popularity" else (widths[name], dtype) for name in scorers}
    # Of the longest range of rows: every rank has as many blocks, and looks up as often in each.
    _, longest = row_range(runtime.dataset.items + 1, 0, context.world_size)
    most = max(1, VECTOR_BYTES // sum(columns * kind.itemsize for columns, kind in shapes.values()))
    blocks = -(-longest // most)
    rows = -(-longest // blocks)
    in_use = [bins[start : start + rows].count_nonzero() for start in range(0, longest, rows)]
    width = common_width(torch.stack(in_use).max(), context.group)

    def read(number: int) -> Block:
        start = number * rows
        own = bins[start : start + rows].nonzero().squeeze(1) + start
        items = own + runtime.bins.start
        vectors = {
            name: torch.zeros(width, columns, dtype=kind, device=context.device)
            for name, (columns, kind) in shapes.items()
        }
        for offset in range(0, rows, LOOKUP_ROWS):
            context.proceed("looks up the catalogue")
            part = slice(offset, min(offset + LOOKUP_ROWS, len(items)))
            looked_up = runtime.rows(items[part])
            made = model.split_by_expert(model.catalogue(looked_up, gated=False))
            if "popularity" in scorers:
                made["popularity"] = frequency[own[part].to(frequency.device), None]
            if "mixture" in scorers:
                made["mixture"] = model.catalogue(looked_up)
            for name in scorers:
                vectors[name][part] = made[name]
        return Block(items, vectors)

    return Candidates(blocks, read if blocks > 1 else cache(read))
