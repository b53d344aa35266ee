"""The training loop of every stage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from pad_dist.config import StageConfig
from pad_dist.data.batches import Batch
from pad_dist.distributed.preemption import Preempted
from pad_dist.errors import UserError
from pad_dist.training.recorder import Recorder

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
    """The validation that was selected, and where training was."""

    epoch: int
    step: int
    metrics: Metrics


class Bests:
    """The best validation whose checkpoint was written: a save may fail and training continue."""

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
    """Where training is: `place` steps of `epoch` are done, `step` in all.

    After the last epoch `epoch` is one more than the stage has.
    """

    epoch: int
    place: int
    step: int
    best: Best
    skipped: int = 0
    """Steps, of all, that changed nothing because their loss was not finite."""


class Trainee(Protocol):
    """What `fit` trains. Every rank calls every method, in the same order."""

    @property
    def preempted(self) -> bool:
        """Whether any rank was told to end when the newest step was taken; equal on all ranks."""

    def batches(self, epoch: int, start_step: int) -> Iterator[Batch]:
        """This rank's batches of an epoch from a step on, the same number on every rank."""

    def step(self, number: int, batch: Batch) -> Tensor:
        """Take step `number`, from 0; the GLOBAL loss. If it is not finite, nothing has changed. Collective."""

    def set_lr_scale(self, scale: float) -> None:
        """Multiply every learning rate of the stage."""

    def end_epoch(self, epoch: int) -> None:
        """Learn that an epoch's last step is taken, once also where training ends there and is resumed. Collective."""

    def validate(self) -> Metrics:
        """Metrics of the current weights, equal on all ranks. Collective."""

    def save(self, progress: Progress) -> Best:
        """Keep the current weights; the best validation whose weights are kept. Collective."""

    def counters(self) -> dict[str, int]:
        """What to report beside a loss, equal on all ranks. Collective."""


def fit(trainee: Trainee, schedule: Schedule, recorder: Recorder, start: Progress | None = None) -> Best:
    """Train until validation hr@10 stops growing; the validation that was selected.

    Args:
        start: None at the beginning; else what `save` was given when the current weights were kept.

    Raises:
        Preempted: training was told to end; everything up to now is saved.
    """
    return _Loop(trainee, schedule, recorder, start or _begin(trainee, recorder)).run()


def _begin(trainee: Trainee, recorder: Recorder) -> Progress:
    """Validate and save the first weights."""
    progress = Progress(1, 0, 0, Best(0, 0, trainee.validate()))
    recorder.validation(epoch=0, step=0, metrics=progress.best.metrics, best=True)
    trainee.save(progress)
    return progress


class _Loop:
    def __init__(self, trainee: Trainee, schedule: Schedule, recorder: Recorder, start: Progress) -> None:
        self._trainee, self._schedule, self._recorder = trainee, schedule, recorder
        self._start_step = start.step
        self._now = start

    def run(self) -> Best:
        stage = self._schedule.stage
        while self._now.epoch <= stage.epochs:
            self._train_epoch()
            if self._now.epoch % self._schedule.validate_every == 0 or self._now.epoch == stage.epochs:
                self._validate_and_save()
            else:
                self._now = replace(self._now, epoch=self._now.epoch + 1, place=0)
        return self._now.best

    def _train_epoch(self) -> None:
        """Take the steps of the epoch that are not taken yet."""
        trainee, schedule, epoch, done = self._trainee, self._schedule, self._now.epoch, self._now.place
        self._recorder.start_clock(done)
        for place, batch in enumerate(trainee.batches(epoch, done), start=done + 1):
            self._warm_up()
            loss = trainee.step(self._now.step, batch)
            self._now = replace(self._now, place=place, step=self._now.step + 1)
            self._record(loss)
            if place == schedule.steps_per_epoch:
                trainee.end_epoch(epoch)
            if trainee.preempted or self._saves_inside_the_epoch():
                self._save()
            if trainee.preempted:
                raise Preempted

    def _warm_up(self) -> None:
        """Set the learning rates of the next step: they grow linearly over the first ones."""
        taken, warmup_steps = self._now.step - self._now.skipped, self._schedule.stage.warmup_steps
        if taken <= warmup_steps or self._now.step == self._start_step:
            self._trainee.set_lr_scale(min(1.0, (taken + 1) / (warmup_steps + 1)))

    def _record(self, loss: Tensor) -> None:
        now, schedule = self._now, self._schedule
        self._recorder.count(schedule.batch_size)
        if not loss.isfinite():
            self._now = now = replace(now, skipped=now.skipped + 1)
            self._recorder.skipped(epoch=now.epoch, step=now.step, place=now.place, skipped=now.skipped)
        elif now.place % schedule.log_every == 0 or now.place == schedule.steps_per_epoch:
            self._recorder.training(
                epoch=now.epoch,
                step=now.step,
                place=now.place,
                steps=schedule.steps_per_epoch,
                loss=loss.item(),
                counters=self._trainee.counters(),
            )

    def _saves_inside_the_epoch(self) -> bool:
        every = self._schedule.save_every
        return bool(every) and self._now.step % every == 0 and self._now.place < self._schedule.steps_per_epoch

    def _validate_and_save(self) -> None:
        """End an epoch: select its weights if they are better, and stop where nothing has been better for long."""
        schedule, recorder, epoch = self._schedule, self._recorder, self._now.epoch
        try:
            metrics = self._trainee.validate()
        except Preempted:
            if self._now.step > self._start_step:
                self._save()
            raise
        best = self._now.best
        improved = not schedule.selects or metrics["hr@10"] > best.metrics["hr@10"]
        recorder.validation(epoch=epoch, step=self._now.step, metrics=metrics, best=improved)
        if improved:
            best = Best(epoch, self._now.step, metrics)
        over = epoch - best.epoch >= schedule.stage.patience
        if over:
            recorder.say(
                f"no better validation hr@10 for {schedule.stage.patience} epochs: stop, keep epoch {best.epoch}"
            )
        following = schedule.stage.epochs + 1 if over else epoch + 1
        self._now = replace(self._now, epoch=following, place=0, best=best)
        self._save()

    def _save(self) -> None:
        self._now = replace(self._now, best=self._trainee.save(self._now))
