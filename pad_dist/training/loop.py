"""The training loop of every stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pad_dist.config import StageConfig
from pad_dist.data.batches import Batch
from pad_dist.errors import UserError
from pad_dist.training.metrics import Recorder
from pad_dist.training.stop import Stopped

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Schedule:
    """How long and in which portions a stage trains; batch_size is global."""

    stage: StageConfig
    batch_size: int
    steps_per_epoch: int
    validate_every: int
    log_every: int
    save_every: int
    selects: bool = True
    """Whether validation selects the checkpoint and ends training; else the last one is kept, after all epochs."""


@dataclass(frozen=True)
class Best:
    """The validation that was selected, and where training stood."""

    epoch: int
    step: int
    metrics: Metrics


class Bests:
    """The best validation whose checkpoint was written: a save may fail and training go on."""

    def __init__(self, best: Best | None) -> None:
        self._last = self._whole = best

    def whole(self, best: Best, lost: set[int]) -> Best:
        """`best`, or the last one that was written if its save has failed.

        Raises:
            UserError: there is none.
        """
        if self._last is not None and self._last.step not in lost:
            self._whole = self._last
        if best.step in lost:
            if self._whole is None:
                raise UserError("no checkpoint could be written, so that there is nothing to go on from: see above")
            best = self._whole
        self._last = best
        return best


@dataclass(frozen=True)
class Progress:
    """Where training stands: `place` steps of `epoch` are done, `step` in all.

    After the last epoch `epoch` is one more than the stage has.
    """

    epoch: int
    place: int
    step: int
    best: Best
    skipped: int = 0
    """Steps, of all, that changed nothing because their loss was not finite."""


def fit(
    schedule: Schedule,
    *,
    start: Progress | None,
    batches: Callable[[int, int], Iterator[Batch]],
    train_step: Callable[[int, Batch], Tensor],
    set_lr_scale: Callable[[float], None],
    validate: Callable[[], Metrics],
    save: Callable[[Progress], Best],
    stopping: Callable[[], bool],
    counters: Callable[[], dict[str, int]],
    end_epoch: Callable[[int], None],
    recorder: Recorder,
) -> Best:
    """Train until validation hr@10 stops growing; returns the validation that was selected.

    Args:
        start: None at the beginning; else what `save` was given when the current weights were kept.
        batches: this rank's batches of an epoch from a place on, the same number on every rank.
        train_step: takes step number n (from 0) and gives the GLOBAL loss, a scalar; where that is not finite, it has
            changed nothing.
        set_lr_scale: multiplies every learning rate of the stage.
        validate: metrics of the current weights, equal on all ranks.
        save: keeps the current weights, and gives the best validation whose weights are kept.
        stopping: whether to end after this step; equal on all ranks.
        counters: what else to report beside a loss, equal on all ranks.
        end_epoch: is told each epoch after its last step, once also where training ends there and goes on later.

    Raises:
        Stopped: training was told to end; everything up to now is saved.
    """
    stage = schedule.stage
    if start is None:
        start = Progress(1, 0, 0, Best(0, 0, validate()))
        recorder.validation(epoch=0, step=0, metrics=start.best.metrics, best=True)
        save(start)
    step, best, skipped = start.step, start.best, start.skipped
    epoch, done = start.epoch, start.place
    while epoch <= stage.epochs:
        recorder.start_clock(done)
        for place, batch in enumerate(batches(epoch, done), start=done + 1):
            taken = step - skipped
            if taken <= stage.warmup_steps or step == start.step:
                set_lr_scale(min(1.0, (taken + 1) / (stage.warmup_steps + 1)))
            loss = train_step(step, batch)
            step += 1
            recorder.count(schedule.batch_size)
            if not loss.isfinite():
                skipped += 1
                recorder.skipped(epoch=epoch, step=step, place=place, skipped=skipped)
            elif place % schedule.log_every == 0 or place == schedule.steps_per_epoch:
                recorder.training(
                    epoch=epoch,
                    step=step,
                    place=place,
                    steps=schedule.steps_per_epoch,
                    loss=loss.item(),
                    counters=counters(),
                )
            if place == schedule.steps_per_epoch:
                end_epoch(epoch)
            stop = stopping()
            if stop or (schedule.save_every and step % schedule.save_every == 0 and place < schedule.steps_per_epoch):
                best = save(Progress(epoch, place, step, best, skipped))
            if stop:
                raise Stopped
        done = 0
        if epoch % schedule.validate_every and epoch != stage.epochs:
            epoch += 1
            continue
        try:
            metrics = validate()
        except Stopped:
            if step > start.step:
                save(Progress(epoch, schedule.steps_per_epoch, step, best, skipped))
            raise
        improved = not schedule.selects or metrics["hr@10"] > best.metrics["hr@10"]
        recorder.validation(epoch=epoch, step=step, metrics=metrics, best=improved)
        if improved:
            best = Best(epoch, step, metrics)
        over = epoch - best.epoch >= stage.patience
        if over:
            recorder.say(f"no better validation hr@10 for {stage.patience} epochs: stop, keep epoch {best.epoch}")
        epoch = stage.epochs + 1 if over else epoch + 1
        best = save(Progress(epoch, 0, step, best, skipped))
    return best
