"""What the tests of stages with hashed tables run on each rank."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from pad_dist.config import StageName
from pad_dist.config_file import parse_config
from pad_dist.stages.system import System, build_system, initialise, load_trained, load_weights
from pad_dist.training.ranks import Ranks
from tests.stages import resume_worker

Vectors = dict[str, NDArray[np.float32]]
Run = tuple[dict[str, Any], StageName]
Cut = tuple[dict[str, Any], StageName, str]
"""A run that ended early, and its newest checkpoint."""


def held_and_resumed(
    checkpoints: list[tuple[dict[str, Any], StageName, str]],
) -> list[tuple[Vectors, dict[int, float]]]:
    """Of each cut run: item vectors of its checkpoint, then the losses of the steps that were left."""
    held = []
    for settings, stage, path in checkpoints:
        system = build_system(parse_config(settings, "the test"), stage, _ranks())
        load_weights(system, path)
        held.append(_vectors(system))
    losses = resume_worker.losses([(settings, stage) for settings, stage, _ in checkpoints], None)
    return list(zip(held, losses, strict=True))


def started(trained: Run, follower: Run) -> tuple[Vectors, Vectors]:
    """Item vectors of a trained stage, and of another one before its first step."""
    settings, stage = follower
    system = build_system(parse_config(settings, "the test"), stage, _ranks())
    initialise(system)
    return _vectors(load_trained(parse_config(trained[0], "the test"), trained[1], _ranks())), _vectors(system)


def _vectors(system: System) -> Vectors:
    with torch.no_grad():
        rows = system.rows(torch.arange(system.dataset.items + 1))
    return {name: rows[name].numpy() for name in system.tables.spec.names}


def _ranks() -> Ranks:
    assert dist.group.WORLD is not None
    return Ranks(dist.get_rank(), dist.get_world_size(), torch.device("cpu"), dist.group.WORLD)
