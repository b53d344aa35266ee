"""What the tests of faults run on each rank: a stage to which something happens at a step."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch

from pad_dist.config.load import parse_config
from pad_dist.data.batches import Batch
from pad_dist.distributed.context import launched
from pad_dist.evaluation import evaluate
from pad_dist.evaluation.evaluate import validate
from pad_dist.runtime.entry import user_errors
from pad_dist.stages.objective import StageObjective
from pad_dist.stages.steps import Stepper
from pad_dist.stages.train import train_stage
from tests.support.stages import stage_of

Faults = dict[int, tuple[str, int]]
"""{step: (what happens before it, on which rank)}; step -1 is the second batch of the second validation."""


def train(settings: dict[str, Any], faults: Faults) -> None:
    """The body of `launchers/pretrain.py`."""
    _prepare(faults)
    with user_errors():
        config = parse_config(settings, "the test")
        with launched(config.training) as context:
            train_stage(stage_of(config, "pretrain"), context, validate)


def _prepare(faults: Faults) -> None:
    step, forward, rank_targets, rank = (
        Stepper.step,
        StageObjective.forward,
        evaluate.rank_targets,
        int(os.environ["RANK"]),
    )
    now, validated = [""], [0]

    def faulty_step(self: Stepper, number: int, batch: Batch) -> torch.Tensor:
        what, where = faults.get(number, ("", rank))
        now[0] = what if where == rank else ""
        if what == "nothing":
            return torch.tensor(torch.nan)
        _happen(now[0])
        return step(self, number, batch)

    def faulty_forward(self: StageObjective, *args: Any) -> torch.Tensor:
        loss = forward(self, *args)
        return loss * torch.nan if now[0] == "nan" else loss

    def faulty_ranking(*args: Any) -> torch.Tensor:
        validated[0] += 1
        if validated[0] == 6:  # four batches each
            what, where = faults.get(-1, ("", rank))
            _happen(what if where == rank else "")
        return rank_targets(*args)

    Stepper.step = faulty_step  # type: ignore[method-assign]
    StageObjective.forward = faulty_forward  # type: ignore[method-assign]
    evaluate.rank_targets = faulty_ranking


def _happen(what: str) -> None:
    if what.startswith("SIG"):
        os.kill(os.getpid(), signal.Signals[what])
    if what == "hang":
        time.sleep(1000)
    if what == "bug":
        raise KeyError("a bug")
