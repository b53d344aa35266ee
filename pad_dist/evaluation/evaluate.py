"""Exact full-catalogue evaluation of a stage on all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pad_dist.config import Config, StageName
from pad_dist.data.loader import eval_batches
from pad_dist.errors import UserError
from pad_dist.evaluation.metrics import COUNTS_SHAPE, rank_counts, summarize
from pad_dist.evaluation.ranking import ItemSlice, gather_rows, lookup_columns, rank_targets
from pad_dist.evaluation.report import SPLITS, Split
from pad_dist.model.pad import Pad
from pad_dist.sparse.row_shards import row_range
from pad_dist.stages.system import System, load_trained
from pad_dist.training.ranks import Ranks

Metrics = dict[str, Any]
LOOKUP_ROWS = 1 << 16
"""Catalogue rows looked up at a time: bounds the memory of an all-to-all."""


def validate(system: System, pad: Pad) -> Metrics:
    """Validation metrics of the score that selects the stage's checkpoint. Collective."""
    return evaluate(system, pad, "valid", [system.main_scorer])[system.main_scorer]


def evaluate_stage(config: Config, stage: StageName, ranks: Ranks) -> dict[str, dict[str, Metrics]]:
    """All scores of a trained stage: {scorer: {split: metrics}}. Collective."""
    system = load_trained(config, stage, ranks)
    pad = system.pad.eval()
    scorers = [*pad.names, *(["mixture"] if pad.gate is not None else []), "popularity"]
    by_split: dict[str, dict[str, Metrics]] = {split: evaluate(system, pad, split, scorers) for split in SPLITS}
    return {name: {split: by_split[split][name] for split in SPLITS} for name in scorers}


@torch.no_grad()
def evaluate(system: System, pad: Pad, split: Split, scorers: Sequence[str]) -> dict[str, Metrics]:
    """Rank the held-out item of every user who has one among the whole catalogue, once per scorer. Collective.

    Items of bin 0 are no candidates: padding, and what is out of use.

    Scorers: an expert's name; "mixture", gated, as one inner product; "popularity",
    train frequency, the same for every user.

    Raises:
        UserError: on every rank, if no user has a target of the split.
    """
    config, ranks = system.config, system.ranks
    first, stop = row_range(system.dataset.items + 1, ranks.rank, ranks.world_size)
    columns = torch.from_numpy(np.stack(system.dataset.item_columns(first, stop), axis=1).astype(np.int64))
    columns = columns.to(ranks.device)
    ranked = columns[:, 1].nonzero().squeeze(1)
    items = first + ranked
    vectors = _item_vectors(system, pad, items, scorers, frequency=columns[ranked, 0])
    counts = {name: torch.zeros(COUNTS_SHAPE, dtype=torch.float64, device=ranks.device) for name in scorers}
    for host_batch in eval_batches(
        system.dataset,
        split,
        batch_size=config.evaluation.batch_size,
        max_length=config.model.max_length,
        rank=ranks.rank,
        world_size=ranks.world_size,
    ):
        batch = system.eval_to_device(host_batch)
        users = pad.encode(batch.inputs, batch.lengths, system.rows(batch.items))
        targets = gather_rows(batch.targets, ranks.group)
        frequency, bins = lookup_columns(targets, columns, first, ranks.group).unbind(1)
        for name in scorers:
            own = _expert_part(pad, name, users) if name != "popularity" else users.new_ones(len(users), 1).double()
            item_slice = ItemSlice(items, vectors[name])
            places = rank_targets(own, batch.targets, batch.history, batch.history_lengths, item_slice, ranks.group)
            counts[name] += rank_counts(places, frequency, bins, config.evaluation.cold_max_frequency)
    metrics = {name: summarize(total) for name, total in counts.items()}
    if not all(found["users"] for found in metrics.values()):
        raise UserError(
            f"{system.dataset.url}: no user has a {split} target, an event of that time after an earlier one: "
            "change data.split and build the dataset again"
        )
    return metrics


def _item_vectors(
    system: System, pad: Pad, items: Tensor, scorers: Sequence[str], frequency: Tensor
) -> dict[str, Tensor]:
    """This rank's candidates for each scorer, [n, its width] for items [n], ascending. Collective."""
    parts: dict[str, list[Tensor]] = {name: [] for name in scorers}
    _, longest = row_range(system.dataset.items + 1, 0, system.ranks.world_size)
    # Every rank looks up as often as one with all of its rows.
    for offset in range(0, longest, LOOKUP_ROWS):
        block = slice(offset, offset + LOOKUP_ROWS)
        rows = system.rows(items[block])
        alone = pad.catalogue(rows, gated=False)
        for name in scorers:
            if name == "popularity":
                parts[name].append(frequency[block, None].double())
            else:
                parts[name].append(pad.catalogue(rows) if name == "mixture" else _expert_part(pad, name, alone))
    return {name: torch.cat(blocks) for name, blocks in parts.items()}


def _expert_part(pad: Pad, scorer: str, vectors: Tensor) -> Tensor:
    """Columns of concatenated vectors [n, M*D] that a scorer uses: all for the mixture, else the expert's D."""
    if scorer == "mixture":
        return vectors
    return vectors.chunk(len(pad.names), dim=1)[[str(name) for name in pad.names].index(scorer)]
