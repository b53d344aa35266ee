"""The training loop of every stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pad_dist.config import StageConfig
from pad_dist.data.batches import Batch
from pad_dist.training.metrics import Recorder

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Schedule:
    """How long and in which portions a stage trains; batch_size is global."""

    stage: StageConfig
    batch_size: int
    steps_per_epoch: int
    validate_every: int
    log_every: int


@dataclass(frozen=True)
class Best:
    """The validation that was selected, and where training stood."""

    epoch: int
    step: int
    metrics: Metrics


def fit(
    schedule: Schedule,
    *,
    batches: Callable[[int], Iterator[Batch]],
    train_step: Callable[[Batch], Tensor],
    set_lr_scale: Callable[[float], None],
    validate: Callable[[], Metrics],
    save: Callable[[Best], None],
    recorder: Recorder,
) -> Best:
    """Train until validation hr@10 stops growing; what was best is what was saved last.

    Args:
        batches: this rank's batches of an epoch, the same number on every rank.
        train_step: takes one step and gives the GLOBAL loss, a scalar.
        set_lr_scale: multiplies every learning rate of the stage.
        validate: metrics of the current weights, equal on all ranks.
        save: keeps the current weights.
    """
    stage = schedule.stage
    step = 0
    best = Best(0, 0, validate())
    recorder.validation(epoch=0, step=0, metrics=best.metrics, best=True)
    save(best)
    for epoch in range(1, stage.epochs + 1):
        recorder.start_clock()
        for place, batch in enumerate(batches(epoch), start=1):
            if step <= stage.warmup_steps:
                set_lr_scale(min(1.0, (step + 1) / (stage.warmup_steps + 1)))
            loss = train_step(batch)
            step += 1
            recorder.count(schedule.batch_size)
            if place % schedule.log_every == 0 or place == schedule.steps_per_epoch:
                recorder.training(epoch=epoch, step=step, place=place, steps=schedule.steps_per_epoch, loss=loss.item())
        if epoch % schedule.validate_every and epoch != stage.epochs:
            continue
        metrics = validate()
        improved = metrics["hr@10"] > best.metrics["hr@10"]
        recorder.validation(epoch=epoch, step=step, metrics=metrics, best=improved)
        if improved:
            best = Best(epoch, step, metrics)
            save(best)
        elif epoch - best.epoch >= stage.patience:
            recorder.say(f"no better validation hr@10 for {stage.patience} epochs: stop, keep epoch {best.epoch}")
            break
    return best
