"""What the test of resuming runs on each rank."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist

from pad_dist.config import StageName
from pad_dist.config_file import parse_config
from pad_dist.evaluation.evaluate import validate
from pad_dist.stages.system import load_trained
from pad_dist.stages.train import Trainer, train_stage
from pad_dist.training.ranks import Ranks


class Killed(Exception):
    """In place of a signal, so that one process can run several cases."""


def losses(runs: list[tuple[dict[str, Any], StageName]], stop: int | None) -> list[dict[int, float]]:
    """Global loss of each step that each run takes now; with `stop` it ends before the step of that number."""
    ranks = _ranks()
    return [_losses(settings, stage, stop, ranks) for settings, stage in runs]


def score(settings: dict[str, Any], stage: StageName) -> dict[str, Any]:
    """Validation metrics of the checkpoint that was kept."""
    system = load_trained(parse_config(settings, "the test"), stage, _ranks())
    return validate(system, system.pad.eval())


def _ranks() -> Ranks:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"DS_ACCELERATOR": "cpu", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    assert dist.group.WORLD is not None
    return Ranks(rank, world_size, torch.device("cpu"), dist.group.WORLD)


def _losses(settings: dict[str, Any], stage: StageName, stop: int | None, ranks: Ranks) -> dict[int, float]:
    found: dict[int, float] = {}
    step = Trainer.step
    restored = Trainer.restore

    def watched(self: Trainer, number: int, batch: Any) -> torch.Tensor:
        if number == stop:
            raise Killed
        loss = step(self, number, batch)
        found[number] = loss.item()
        return loss

    def restore(self: Trainer, path: str) -> Any:
        progress = restored(self, path)
        found.clear()
        return progress

    Trainer.step, Trainer.restore = watched, restore  # type: ignore[method-assign]
    try:
        train_stage(parse_config(settings, "the test"), stage, ranks, validate)
    except Killed:
        pass
    finally:
        Trainer.step, Trainer.restore = step, restored  # type: ignore[method-assign]
    return found
