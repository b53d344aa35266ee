"""Train one stage on this rank: build, inherit or resume, fit, keep the best."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pad_dist import storage
from pad_dist.config import Config, StageName
from pad_dist.data.batches import Batch
from pad_dist.data.hashing import DROPOUT, hash_ids
from pad_dist.data.loader import train_batches
from pad_dist.data.order import epoch_batches, steps_per_epoch
from pad_dist.environment import environment
from pad_dist.errors import UserError
from pad_dist.model.pad import Pad
from pad_dist.stages.fingerprint import fingerprint, made_from
from pad_dist.stages.objective import StageObjective
from pad_dist.stages.parts import checkpoint_dir, parts, stage_dir
from pad_dist.stages.resume import checkpoint_to_resume
from pad_dist.stages.scored import ScoredWeights
from pad_dist.stages.system import System, build_system, initialise
from pad_dist.stages.trained_on import record
from pad_dist.training.checkpoint import checkpoint_meta, load_optimizer, load_parts
from pad_dist.training.engine import build_engine, load_optimizer_state, optimizer_state
from pad_dist.training.lock import locked
from pad_dist.training.loop import Best, Bests, Metrics, Progress, Schedule, fit
from pad_dist.training.metrics import Recorder
from pad_dist.training.ranks import Ranks
from pad_dist.training.saving import Saver

Validate = Callable[[System, Pad], Metrics]
"""Validation metrics of a system whose dense weights are those of the given module."""

MOST_SKIPPED_IN_A_ROW = 10
"""After so many batches without a finite loss it is not the batches that are broken."""


def train_stage(config: Config, stage: StageName, ranks: Ranks, validate: Validate) -> Best:
    """Train a stage to early stopping; leave its best checkpoint and `result.json` in `<out>/<stage>`.

    A run that was killed goes on from its newest whole checkpoint, at any world size, and gives what it would have;
    the seconds up to that checkpoint count with its own.

    Raises:
        UserError: another run writes there; see `checkpoint_to_resume` and `Saver.save`.
    """
    system = build_system(config, stage, ranks)
    directories = {stage_dir(config, stage), checkpoint_dir(config, stage)}
    with locked(sorted(directories), config.name, ranks):
        return _train(system, validate)


def _train(system: System, validate: Validate) -> Best:
    config, stage, ranks = system.config, system.stage, system.ranks

    def say(text: str) -> None:
        if ranks.is_first:
            print(f"[{stage}] {text}", flush=True)

    kept = checkpoint_to_resume(config, stage, ranks, say)
    started = time.monotonic() - (checkpoint_meta(kept)["seconds"] if kept else 0.0)  # as if it had not been cut
    saver = Saver(checkpoint_dir(config, stage), config.checkpoint, ranks, say)
    scored = ScoredWeights(system, saver.finish)
    if kept is None:
        initialise(system)
        scored.end_epoch(0)
    else:
        scored.load(kept)
    trainer = Trainer(system, saver.keep)
    start = trainer.restore(kept) if kept else None
    saver.newest = start.step if start else None

    def validate_now() -> Metrics:
        with scored.validating():
            return validate(system, scored.pad)

    result = f"{stage_dir(config, stage)}/result.json"
    about = {"made_from": made_from(config, stage), "fingerprint": fingerprint(config, stage)}
    about |= {"dataset": record(system.dataset)}
    bests = Bests(start.best if start else None)

    def save(progress: Progress) -> Best:
        ranks.watch.beat("writes a checkpoint", patient=True)
        if ranks.is_first:
            storage.remove(result)
        saver.finish()
        progress = replace(progress, best=bests.whole(progress.best, saver.lost))
        saver.save(
            progress.step,
            parts=scored.parts(),
            dense=scored.dense(),
            optimizer=trainer.optimizer_state() if progress.step > progress.skipped else {},
            best=progress.best.step,
            meta={
                **about,
                "stage": stage,
                "progress": asdict(progress),
                "seconds": round(time.monotonic() - started, 2),
                "config": config.model_dump(mode="json"),
                "sharding": config.sparse.sharding,
            },
        )
        return progress.best

    training = config.training
    schedule = Schedule(
        config.stage(stage),
        training.batch_size,
        steps_per_epoch(system.dataset.users, training.batch_size),
        config.evaluation.every,
        training.log_every,
        config.checkpoint.every,
        parts(config, stage).ranks,
    )
    start_step = start.step if start else None
    with saver, Recorder(stage, stage_dir(config, stage), speaks=ranks.is_first, start_step=start_step) as recorder:
        recorder.say(
            f"{system.dataset.users:,} users, {system.dataset.items:,} items, {schedule.steps_per_epoch} steps of "
            f"{training.batch_size} sequences per epoch, {ranks.world_size} rank(s) on {ranks.device.type}"
        )
        if start:
            recorder.say(f"goes on from {kept}: {start.step} steps are done")
        ranks.stop.defer()
        best = fit(
            schedule,
            start=start,
            batches=trainer.batches,
            train_step=trainer.step,
            set_lr_scale=trainer.set_lr_scale,
            validate=validate_now,
            save=save,
            stopping=lambda: trainer.stopping,
            counters=system.tables.counters,
            end_epoch=scored.end_epoch,
            recorder=recorder,
        )
        saver.finish()
        best = bests.whole(best, saver.lost)
    if ranks.is_first:
        found = {"epoch": best.epoch, "valid": best.metrics, "seconds": round(time.monotonic() - started, 2)}
        found |= {"environment": environment(ranks.world_size), "checkpoint_root": config.checkpoint.root}
        storage.write_json(result, about | found)
    return best


class Trainer:
    """One training step of a stage, and the batches for it."""

    def __init__(self, system: System, before_change: Callable[[Tensor], None] = lambda items: None) -> None:
        """`before_change` is told the rows [U] of each step before they change; collective."""
        self._before_change = before_change
        config, ranks = system.config, system.ranks
        self._system = system
        self._stage = config.stage(system.stage)
        group = ranks.group if ranks.world_size > 1 else None
        self.objective = StageObjective(system.pad, system.stage, config, system.dataset.items, group).train()
        self._engine = build_engine(self.objective, _parameter_groups(system), config.training)
        self._base_lrs = [group["lr"] for group in self._engine.optimizer.param_groups]
        self._skipped_in_a_row = 0
        self.stopping = False
        """Whether any rank was told to end when the newest step was taken; equal on all ranks."""

    def restore(self, path: str) -> Progress:
        """Go on from a checkpoint whose weights the system has taken already. Collective."""
        values = checkpoint_meta(path)["progress"]
        progress = Progress(**values | {"best": Best(**values["best"])})
        if progress.step > progress.skipped:
            # The optimizers make room for their state in a step, which here has no learning rate.
            self.set_lr_scale(0.0)
            next(batch for batch in self.batches(1) if self._take(0, batch, admit=False).isfinite())
            load_optimizer_state(self._engine, load_optimizer(path))
            tables = self._system.tables
            load_parts(path, [part for part in tables.parts() if part.name not in tables.spec.names])
        return progress

    def optimizer_state(self) -> dict[str, Tensor]:
        """What the dense optimizer goes on from. Collective."""
        return optimizer_state(self._engine)

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """This rank's batches of one epoch."""
        system, config = self._system, self._system.config
        return train_batches(
            system.dataset,
            epoch=epoch,
            seed=config.seed,
            batch_size=config.training.batch_size,
            max_length=config.model.max_length,
            loss=config.training.loss,
            rank=system.ranks.rank,
            world_size=system.ranks.world_size,
            start_step=start_step,
            occurrence_share=config.align.item_share if system.stage == "align" else 1.0,
            targets=config.disentangle.targets if system.stage == "disentangle" else "train",
        )

    def step(self, number: int, batch: Batch) -> Tensor:
        """Take step `number` and give its GLOBAL loss; one that is not finite changes nothing.

        Raises:
            UserError: on every rank, if the loss is not finite and such a batch is not to be skipped.
        """
        loss = self._take(number, batch, admit=True)
        self._skipped_in_a_row = 0 if loss.isfinite() else self._skipped_in_a_row + 1
        if self._skipped_in_a_row:
            self._refuse_or_skip(number)
        self._system.ranks.watch.step_done(number + 1)
        return loss

    def _take(self, number: int, batch: Batch, *, admit: bool) -> Tensor:
        """Look up, project, score, one backward (which steps the tables), one dense step.

        `admit`: whether ids may get rows of hashed tables.
        """
        # Dropout is a function of step and rank, so that a resumed run draws what an uninterrupted one would.
        config, ranks = self._system.config, self._system.ranks
        torch.manual_seed(int(hash_ids(config.seed, DROPOUT, number, np.array([ranks.rank]))[0]) >> 1)
        self._system.tables.set_step(number)
        ranks.watch.beat(f"computes the loss of step {number + 1}")
        masked = self._system.masked(number, batch.items)
        batch = self._system.to_device(batch)
        rows = self._system.rows(batch.items, batch.sightings() if admit else None, self._before_change)
        share = self._engine(batch, rows | masked)
        ranks.watch.beat(f"waits for the loss of step {number + 1}")
        # Before the backward, which steps the tables. The wish to end rides along.
        self._share = share.detach().float() / ranks.world_size
        sums = ranks.sum(torch.stack([self._share, self._share.new_tensor(float(ranks.stop.requested))])).cpu()
        loss, self.stopping = sums[0], bool(sums[1])
        if loss.isfinite():
            self._engine.backward(share)
            self._engine.step()
        return loss

    def _refuse_or_skip(self, number: int) -> None:
        system, training = self._system, self._system.config.training
        if training.non_finite == "skip" and self._skipped_in_a_row < MOST_SKIPPED_IN_A_ROW:
            return
        ranks, steps = system.ranks, steps_per_epoch(system.dataset.users, training.batch_size)
        broken = torch.zeros(ranks.world_size, device=ranks.device)
        broken[ranks.rank] = ~self._share.isfinite()
        on = [str(rank) for rank, found in enumerate(ranks.sum(broken).tolist()) if found]
        epoch, place, seed = number // steps + 1, number % steps, system.config.seed
        rows = next(epoch_batches(seed, epoch, system.dataset.shard_rows, training.batch_size, start_step=place))
        users = f"{', '.join(map(str, rows[:5]))}{', ...' if len(rows) > 5 else ''}"
        where = (
            f"step {number + 1} (epoch {epoch}, step {place + 1} of {steps}, seed {seed}; users in rows {users} of the "
            f"dataset; on rank {', '.join(on)})"
        )
        if training.non_finite == "skip":
            raise UserError(
                f"the loss is not finite for {self._skipped_in_a_row} batches in a row, up to {where}: the weights "
                "themselves are broken; lower the learning rates and train again"
            )
        raise UserError(
            f"the loss of {where} is not finite: lower the learning rates, look at the text vectors, or set "
            "training.non_finite=skip and run the same command again"
        )

    def set_lr_scale(self, scale: float) -> None:
        """Multiply the learning rates of tables and dense part."""
        self._system.tables.set_lr(self._stage.sparse_lr * scale)
        for group, lr in zip(self._engine.optimizer.param_groups, self._base_lrs, strict=True):
            group["lr"] = lr * scale


def _parameter_groups(system: System) -> list[dict[str, Any]]:
    stage, gate = system.config.stage(system.stage), system.config.disentangle
    dense = [p for n, p in system.pad.named_parameters() if p.requires_grad and not n.startswith("gate.")]
    groups = [{"params": dense, "lr": stage.lr, "weight_decay": stage.weight_decay}] if dense else []
    if system.pad.gate is not None:
        logits = list(system.pad.gate.parameters())
        groups.append({"params": logits, "lr": gate.gate_lr, "weight_decay": gate.gate_weight_decay})
    return groups
