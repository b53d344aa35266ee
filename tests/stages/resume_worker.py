"""What the test of resuming runs on each rank."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist

from pad_dist.config import StageName
from pad_dist.config.load import parse_config
from pad_dist.distributed.context import DistributedContext
from pad_dist.evaluation.evaluate import validate
from pad_dist.stages.stage_runtime import load_trained
from pad_dist.stages.steps import Stepper
from pad_dist.stages.train import train_stage
from tests.support.stages import stage_of


class Killed(Exception):
    """In place of a signal, so that one process can run several cases."""


def losses(runs: list[tuple[dict[str, Any], StageName]], stop: int | None) -> list[dict[int, float]]:
    """Global loss of each step that each run takes now; with `stop` it ends before the step of that number."""
    context = _context()
    return [_losses(settings, stage, stop, context) for settings, stage in runs]


def score(settings: dict[str, Any], stage: StageName) -> dict[str, Any]:
    """Validation metrics of the checkpoint that was kept."""
    runtime = load_trained(stage_of(parse_config(settings, "the test"), stage), _context())
    return validate(runtime, runtime.model.eval())


def _context() -> DistributedContext:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"DS_ACCELERATOR": "cpu", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    assert dist.group.WORLD is not None
    return DistributedContext(rank, world_size, torch.device("cpu"), dist.group.WORLD)


def _losses(
    settings: dict[str, Any], stage: StageName, stop: int | None, context: DistributedContext
) -> dict[int, float]:
    taken: dict[int, float] = {}
    step = Stepper.step
    restored = Stepper.restore

    def watched(self: Stepper, number: int, batch: Any) -> torch.Tensor:
        if number == stop:
            raise Killed
        loss = step(self, number, batch)
        taken[number] = loss.item()
        return loss

    def restore(self: Stepper, path: str) -> Any:
        progress = restored(self, path)
        taken.clear()
        return progress

    Stepper.step, Stepper.restore = watched, restore  # type: ignore[method-assign]
    try:
        train_stage(stage_of(parse_config(settings, "the test"), stage), context, validate)
    except Killed:
        pass
    finally:
        Stepper.step, Stepper.restore = step, restored  # type: ignore[method-assign]
    return taken
