"""The training step of a stage: look up, score, one backward, one step of every optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pad_dist.checkpoint.files import checkpoint_meta, load_optimizer, load_shards
from pad_dist.data.batches import Batch
from pad_dist.data.hashing import DROPOUT, hash_ids
from pad_dist.data.loader import train_batches
from pad_dist.data.order import epoch_batches, steps_per_epoch
from pad_dist.errors import UserError
from pad_dist.stages.objective import StageObjective
from pad_dist.stages.stage_runtime import StageRuntime
from pad_dist.training.engine import build_engine, load_optimizer_state, optimizer_state
from pad_dist.training.loop import Best, Progress

MOST_SKIPPED_IN_A_ROW = 10
"""After so many batches without a finite loss it is not the batches that are broken."""


class Stepper:
    """One training step of a stage, and the batches for it."""

    def __init__(self, runtime: StageRuntime, before_change: Callable[[Tensor], None] = lambda items: None) -> None:
        """`before_change` is told the rows [U] of each step before they change; collective."""
        self._before_change = before_change
        self._runtime, self._spec, self._context = runtime, runtime.spec, runtime.context
        self.objective = StageObjective(
            runtime.spec, runtime.model, runtime.auxiliary, runtime.dataset.items, runtime.context.world_size
        ).train()
        self._engine = build_engine(self.objective, _parameter_groups(runtime), runtime.config.training)
        self._base_lrs = [group["lr"] for group in self._engine.optimizer.param_groups]
        self._skipped_in_a_row = 0
        self.preempted = False
        """Whether any rank was told to end when the newest step was taken; equal on all ranks."""

    def restore(self, path: str) -> Progress:
        """Resume from a checkpoint whose weights the stage has taken already. Collective."""
        values = checkpoint_meta(path)["progress"]
        progress = Progress(**values | {"best": Best(**values["best"])})
        if progress.step > progress.skipped:
            # The optimizers make room for their state in a step, which here has no learning rate.
            self.set_lr_scale(0.0)
            next(batch for batch in self.batches(1) if self._take(0, batch, admit=False).isfinite())
            load_optimizer_state(self._engine, load_optimizer(path))
            tables = self._runtime.tables
            load_shards(path, [shard for shard in tables.shards() if shard.name not in tables.spec.names])
        return progress

    def optimizer_state(self) -> dict[str, Tensor]:
        """State that the dense optimizer resumes from. Collective."""
        return optimizer_state(self._engine)

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """This rank's batches of one epoch."""
        config, context = self._spec.config, self._context
        return train_batches(
            self._runtime.dataset,
            epoch=epoch,
            seed=config.seed,
            batch_size=config.training.batch_size,
            max_length=config.model.max_length,
            loss=config.training.loss,
            rank=context.rank,
            world_size=context.world_size,
            start_step=start_step,
            occurrence_share=self._spec.item_share,
            targets=self._spec.targets,
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
        self._context.watchdog.step_done(number + 1)
        return loss

    def _take(self, number: int, batch: Batch, *, admit: bool) -> Tensor:
        """Look up, project, score, one backward (which steps the tables), one dense step.

        `admit`: whether ids may get rows of hashed tables.
        """
        runtime, context = self._runtime, self._context
        # Dropout is a function of step and rank, so that a resumed run draws what an uninterrupted one would.
        torch.manual_seed(int(hash_ids(self._spec.config.seed, DROPOUT, number, np.array([context.rank]))[0]) >> 1)
        runtime.tables.set_step(number)
        context.watchdog.heartbeat(f"computes the loss of step {number + 1}")
        masked = runtime.masked(number, batch.items)
        batch = runtime.to_device(batch)
        rows = runtime.rows(batch.items, batch.sightings() if admit else None, self._before_change)
        share = self._engine(batch, rows | masked)
        context.watchdog.heartbeat(f"waits for the loss of step {number + 1}")
        # Before the backward, which steps the tables. The wish to end rides along.
        self._share = share.detach().float() / context.world_size
        wish = self._share.new_tensor(float(context.preemption.requested))
        sums = context.sum(torch.stack([self._share, wish])).cpu()
        loss, self.preempted = sums[0], bool(sums[1])
        if loss.isfinite():
            self._engine.backward(share)
            self._engine.step()
        return loss

    def _refuse_or_skip(self, number: int) -> None:
        dataset, training, context = self._runtime.dataset, self._spec.config.training, self._context
        if training.non_finite == "skip" and self._skipped_in_a_row < MOST_SKIPPED_IN_A_ROW:
            return
        steps = steps_per_epoch(dataset.users, training.batch_size)
        broken = torch.zeros(context.world_size, device=context.device)
        broken[context.rank] = ~self._share.isfinite()
        on = [str(rank) for rank, is_broken in enumerate(context.sum(broken).tolist()) if is_broken]
        epoch, place, seed = number // steps + 1, number % steps, self._spec.config.seed
        rows = next(epoch_batches(seed, epoch, dataset.shard_rows, training.batch_size, start_step=place))
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
        self._runtime.tables.set_lr(self._spec.settings.sparse_lr * scale)
        for group, lr in zip(self._engine.optimizer.param_groups, self._base_lrs, strict=True):
            group["lr"] = lr * scale


def _parameter_groups(runtime: StageRuntime) -> list[dict[str, Any]]:
    spec, model, settings = runtime.spec, runtime.model, runtime.spec.settings
    dense = [p for n, p in model.named_parameters() if p.requires_grad and not n.startswith("gate.")]
    groups = [{"params": dense, "lr": settings.lr, "weight_decay": settings.weight_decay}] if dense else []
    if model.gate is not None and spec.mixture is not None:
        gate = {"lr": spec.mixture.gate_lr, "weight_decay": spec.mixture.gate_weight_decay}
        groups.append({"params": list(model.gate.parameters()), **gate})
    return groups
