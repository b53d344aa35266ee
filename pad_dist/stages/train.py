"""Train one stage on this rank: build, inherit, fit, keep the best."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pad_dist import storage
from pad_dist.config import Config, StageName
from pad_dist.data.batches import Batch
from pad_dist.data.loader import train_batches
from pad_dist.data.order import steps_per_epoch
from pad_dist.environment import environment
from pad_dist.model.pad import Pad
from pad_dist.stages.objective import StageObjective
from pad_dist.stages.parts import fingerprint, stage_dir
from pad_dist.stages.system import System, build_system, initialise
from pad_dist.stages.trained_on import record
from pad_dist.training.checkpoint import save_checkpoint
from pad_dist.training.engine import build_engine, full_state
from pad_dist.training.loop import Best, Metrics, Schedule, fit
from pad_dist.training.metrics import Recorder
from pad_dist.training.ranks import Ranks

Validate = Callable[[System, Pad], Metrics]
"""Validation metrics of a system whose dense weights are those of the given module."""


def train_stage(config: Config, stage: StageName, ranks: Ranks, validate: Validate) -> Best:
    """Train a stage to early stopping; leave its best checkpoint and `result.json` in `<out>/<stage>`."""
    system = build_system(config, stage, ranks)
    initialise(system)
    scoring = copy.deepcopy(system.pad).eval()
    trainer = Trainer(system)
    mark = fingerprint(config, stage)

    def scoring_weights() -> dict[str, Tensor]:
        prefix = "pad."
        return {name.removeprefix(prefix): value for name, value in full_state(trainer.objective).items()}

    def validate_now() -> Metrics:
        scoring.load_state_dict(scoring_weights())
        return validate(system, scoring)

    result = f"{stage_dir(config, stage)}/result.json"

    def save(best: Best) -> None:
        if ranks.is_first:
            storage.remove(result)
        meta = {"fingerprint": mark, "stage": stage, "epoch": best.epoch, "valid": best.metrics}
        meta |= {"config": config.model_dump(mode="json"), "dataset": record(system.dataset)}
        save_checkpoint(stage_dir(config, stage), best.step, scoring_weights(), system.tables.state(), meta, ranks)

    training = config.training
    schedule = Schedule(
        config.stage(stage),
        training.batch_size,
        steps_per_epoch(system.dataset.users, training.batch_size),
        config.evaluation.every,
        training.log_every,
    )
    with Recorder(stage, stage_dir(config, stage), speaks=ranks.is_first) as recorder:
        recorder.say(
            f"{system.dataset.users:,} users, {system.dataset.items:,} items, {schedule.steps_per_epoch} steps of "
            f"{training.batch_size} sequences per epoch, {ranks.world_size} rank(s) on {ranks.device.type}"
        )
        best = fit(
            schedule,
            batches=trainer.batches,
            train_step=trainer.step,
            set_lr_scale=trainer.set_lr_scale,
            validate=validate_now,
            save=save,
            recorder=recorder,
        )
    if ranks.is_first:
        found = {"epoch": best.epoch, "valid": best.metrics, "environment": environment(ranks.world_size)}
        storage.write_json(result, {"fingerprint": mark, "dataset": record(system.dataset), **found})
    return best


class Trainer:
    """One training step of a stage, and the batches for it."""

    def __init__(self, system: System) -> None:
        config, ranks = system.config, system.ranks
        self._system = system
        self._stage = config.stage(system.stage)
        group = ranks.group if ranks.world_size > 1 else None
        self.objective = StageObjective(system.pad, system.stage, config, group).train()
        self._engine = build_engine(self.objective, _parameter_groups(system), config.training)
        self._base_lrs = [group["lr"] for group in self._engine.optimizer.param_groups]
        # From here on randomness is dropout's: every rank has its own.
        torch.manual_seed(config.seed * 1_000_003 + ranks.rank)

    def batches(self, epoch: int) -> Iterator[Batch]:
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
            occurrence_share=config.align.mmd_item_share if system.stage == "align" else 1.0,
        )

    def step(self, batch: Batch) -> Tensor:
        """Look up, project, score, one backward (which steps the tables), one dense step."""
        batch = self._system.to_device(batch)
        loss = self._engine(batch, self._system.rows(batch.items))
        self._engine.backward(loss)
        self._engine.step()
        return self._system.ranks.sum(loss.detach().float()) / self._system.ranks.world_size

    def set_lr_scale(self, scale: float) -> None:
        """Multiply the learning rates of tables and dense part."""
        self._system.tables.set_lr(self._stage.sparse_lr * scale)
        for group, lr in zip(self._engine.optimizer.param_groups, self._base_lrs, strict=True):
            group["lr"] = lr * scale


def _parameter_groups(system: System) -> list[dict[str, Any]]:
    stage, gate = system.config.stage(system.stage), system.config.disentangle
    dense = [p for n, p in system.pad.named_parameters() if p.requires_grad and not n.startswith("gate.")]
    groups = [{"params": dense, "lr": stage.lr, "weight_decay": stage.weight_decay}]
    if system.stage == "disentangle":
        logits = [p for n, p in system.pad.named_parameters() if n.startswith("gate.")]
        groups.append({"params": logits, "lr": gate.gate_lr, "weight_decay": gate.gate_weight_decay})
    return groups
