"""What the tests of stages with hashed tables run on each rank."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from pad_dist.config import StageName
from pad_dist.config.load import parse_config
from pad_dist.distributed.context import DistributedContext
from pad_dist.stages.spec import StageSpec
from pad_dist.stages.stage_runtime import StageRuntime, build_runtime, initialise, load_trained, load_weights
from tests.stages import resume_worker
from tests.support.stages import stage_of

Vectors = dict[str, NDArray[np.float32]]
Run = tuple[dict[str, Any], StageName]
Cut = tuple[dict[str, Any], StageName, str]
"""A run that ended early, and its newest checkpoint."""


def loaded_and_resumed(
    checkpoints: list[tuple[dict[str, Any], StageName, str]],
) -> list[tuple[Vectors, dict[int, float]]]:
    """Of each cut run: item vectors of its checkpoint, then the losses of the steps that were left."""
    loaded = []
    for settings, stage, path in checkpoints:
        runtime = build_runtime(_stage((settings, stage)), _context())
        load_weights(runtime, path)
        loaded.append(_vectors(runtime))
    losses = resume_worker.losses([(settings, stage) for settings, stage, _ in checkpoints], None)
    return list(zip(loaded, losses, strict=True))


def started(trained: Run, follower: Run) -> tuple[Vectors, Vectors]:
    """Item vectors of a trained stage, and of another one before its first step."""
    runtime = build_runtime(_stage(follower), _context())
    initialise(runtime)
    return _vectors(load_trained(_stage(trained), _context())), _vectors(runtime)


def _stage(run: Run) -> StageSpec:
    settings, name = run
    return stage_of(parse_config(settings, "the test"), name)


def _vectors(runtime: StageRuntime) -> Vectors:
    with torch.no_grad():
        rows = runtime.rows(torch.arange(runtime.dataset.items + 1))
    return {name: rows[name].numpy() for name in runtime.tables.spec.names}


def _context() -> DistributedContext:
    assert dist.group.WORLD is not None
    return DistributedContext(dist.get_rank(), dist.get_world_size(), torch.device("cpu"), dist.group.WORLD)
