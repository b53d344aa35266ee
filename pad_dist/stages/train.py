"""Train one stage on this rank: build, inherit or resume, fit, keep the best."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from pad_dist import storage
from pad_dist.checkpoint.files import checkpoint_meta
from pad_dist.checkpoint.lock import locked
from pad_dist.checkpoint.saver import Saver
from pad_dist.data.order import steps_per_epoch
from pad_dist.distributed.context import DistributedContext
from pad_dist.model.recommender import Recommender
from pad_dist.runtime.environment import environment
from pad_dist.stages.ema import EmaWeights
from pad_dist.stages.fingerprint import fingerprint, made_from
from pad_dist.stages.resume import checkpoint_to_resume
from pad_dist.stages.spec import StageSpec
from pad_dist.stages.stage_runtime import StageRuntime, build_runtime, initialise
from pad_dist.stages.steps import Stepper
from pad_dist.stages.trained_on import record
from pad_dist.training.loop import Best, Bests, Metrics, Progress, Schedule, fit
from pad_dist.training.recorder import Recorder

Validate = Callable[[StageRuntime, Recommender], Metrics]
"""Validation metrics of a stage whose dense weights are those of the given model."""


def train_stage(spec: StageSpec, context: DistributedContext, validate: Validate) -> Best:
    """Train a stage to early stopping; leave its best checkpoint and `result.json` in `<out>/<stage>`.

    A run that was killed resumes from its newest whole checkpoint, at any world size, and gives what it would have;
    the seconds up to that checkpoint count with its own.

    Raises:
        UserError: another run writes to these directories; see `checkpoint_to_resume` and `Saver.save`.
    """
    runtime = build_runtime(spec, context)
    with locked(sorted({spec.directory, spec.checkpoint_directory}), spec.config.name, context):
        training = StageTraining(runtime, validate)
        best = training.run()
    return best


class StageTraining:
    """A stage in training: what `fit` calls, and how its state is kept and restored."""

    def __init__(self, runtime: StageRuntime, validate: Validate) -> None:
        """Take the first weights, or those of the checkpoint to resume from. Collective."""
        self._runtime, self._validate = runtime, validate
        self._spec, self._context = runtime.spec, runtime.context
        self._resumed = checkpoint_to_resume(self._spec, self._context, self._say)
        before = checkpoint_meta(self._resumed)["seconds"] if self._resumed else 0.0
        self._started = time.monotonic() - before  # as if it had not been interrupted
        self._saver = Saver(self._spec.checkpoint_directory, self._spec.config.checkpoint, self._context, self._say)
        self._weights = EmaWeights(runtime, self._saver.finish)
        if self._resumed is None:
            initialise(runtime)
            self._weights.end_epoch(0)
        else:
            self._weights.load(self._resumed)
        self._stepper = Stepper(runtime, self._saver.keep)
        self._start = self._stepper.restore(self._resumed) if self._resumed else None
        self._saver.newest = self._start.step if self._start else None
        self._bests = Bests(self._start.best if self._start else None)
        self._about = {"made_from": made_from(self._spec), "fingerprint": fingerprint(self._spec)}
        self._about |= {"dataset": record(runtime.dataset)}
        self.batches, self.step = self._stepper.batches, self._stepper.step
        self.set_lr_scale = self._stepper.set_lr_scale
        self.end_epoch, self.counters = self._weights.end_epoch, runtime.tables.counters

    def run(self) -> Best:
        """Train to the end, and leave the result. Collective."""
        spec, start_step = self._spec, self._start.step if self._start else None
        with (
            self._saver,
            Recorder(spec.name, spec.directory, speaks=self._context.is_first, start_step=start_step) as recorder,
        ):
            recorder.say(self._description())
            if self._start:
                recorder.say(f"resumes from {self._resumed}: {self._start.step} steps are done")
            self._context.preemption.defer()
            best = fit(self, self._schedule(), recorder, self._start)
            self._saver.finish()
            best = self._bests.whole(best, self._saver.lost)
        if self._context.is_first:
            self._write_result(best)
        return best

    @property
    def preempted(self) -> bool:
        """See `Trainee`."""
        return self._stepper.preempted

    def validate(self) -> Metrics:
        """See `Trainee`."""
        with self._weights.validating():
            return self._validate(self._runtime, self._weights.model)

    def save(self, progress: Progress) -> Best:
        """See `Trainee`."""
        self._context.watchdog.heartbeat("writes a checkpoint", patient=True)
        if self._context.is_first:
            storage.remove(self._spec.result_url)
        self._saver.finish()
        progress = replace(progress, best=self._bests.whole(progress.best, self._saver.lost))
        self._saver.save(
            progress.step,
            shards=self._weights.shards(),
            dense=self._weights.dense(),
            optimizer=self._stepper.optimizer_state() if progress.step > progress.skipped else {},
            best=progress.best.step,
            meta={
                **self._about,
                "stage": self._spec.name,
                "progress": asdict(progress),
                "seconds": self._seconds(),
                "config": self._spec.config.model_dump(mode="json"),
                "sharding": self._spec.config.sparse.sharding,
            },
        )
        return progress.best

    def _schedule(self) -> Schedule:
        config = self._spec.config
        return Schedule(
            self._spec.settings,
            config.training.batch_size,
            self._steps_per_epoch,
            config.evaluation.every,
            config.training.log_every,
            config.checkpoint.every,
            self._spec.evaluated,
        )

    @property
    def _steps_per_epoch(self) -> int:
        return steps_per_epoch(self._runtime.dataset.users, self._spec.config.training.batch_size)

    def _description(self) -> str:
        dataset, context = self._runtime.dataset, self._context
        return (
            f"{dataset.users:,} users, {dataset.items:,} items, {self._steps_per_epoch} steps of "
            f"{self._spec.config.training.batch_size} sequences per epoch, {context.world_size} rank(s) on "
            f"{context.device.type}"
        )

    def _write_result(self, best: Best) -> None:
        result: dict[str, Any] = {"epoch": best.epoch, "valid": best.metrics, "seconds": self._seconds()}
        result |= {"environment": environment(self._context.world_size)}
        result |= {"checkpoint_root": self._spec.config.checkpoint.root}
        storage.write_json(self._spec.result_url, self._about | result)

    def _seconds(self) -> float:
        return round(time.monotonic() - self._started, 2)

    def _say(self, text: str) -> None:
        if self._context.is_first:
            print(f"[{self._spec.name}] {text}", flush=True)
