"""Checkpoints of tables alone, written as training writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pad_dist.checkpoint.saver import Saver
from pad_dist.config import CheckpointConfig
from pad_dist.distributed.context import DistributedContext
from pad_dist.sparse.spec import TableShard


def save(
    directory: str,
    step: int,
    shards: Sequence[TableShard],
    context: DistributedContext,
    *,
    dense: dict[str, Tensor] | None = None,
    best: int | None = None,
    meta: dict[str, Any] | None = None,
    **settings: Any,
) -> None:
    """Write one checkpoint and wait for it; `settings` are those of `checkpoint`. Collective."""
    with Saver(directory, CheckpointConfig(**settings), context, print) as saver:
        saver.save(
            step, shards=shards, dense=dense or {}, optimizer={}, best=step if best is None else best, meta=meta or {}
        )
