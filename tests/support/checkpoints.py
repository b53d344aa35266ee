"""Checkpoints of tables alone, written as training writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pad_dist.config import CheckpointConfig
from pad_dist.sparse.tables import Part
from pad_dist.training.ranks import Ranks
from pad_dist.training.saving import Saver


def save(
    directory: str,
    step: int,
    parts: Sequence[Part],
    ranks: Ranks,
    *,
    dense: dict[str, Tensor] | None = None,
    best: int | None = None,
    meta: dict[str, Any] | None = None,
    **settings: Any,
) -> None:
    """Write one checkpoint and wait for it; `settings` are those of `checkpoint`. Collective."""
    with Saver(directory, CheckpointConfig(**settings), ranks, print) as saver:
        saver.save(
            step, parts=parts, dense=dense or {}, optimizer={}, best=step if best is None else best, meta=meta or {}
        )
