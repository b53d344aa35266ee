"""Sections of a run config that all stages share: training, checkpoints and evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pad_dist.config.base import Section
from pad_dist.config.losses import LossConfig, SampledSoftmaxConfig


class TrainingConfig(Section):
    """Settings that all stages share."""

    execution_keys = frozenset(
        {"world_size", "zero_stage", "device", "log_every", "non_finite", "restarts"}
        | {"first_step_timeout_s", "step_timeout_s"}
    )

    world_size: int = Field(2, ge=1)
    """Number of ranks that `pad-dist run` starts on this machine; deepspeed and torchrun set their own."""
    batch_size: int = Field(128, ge=1)
    """Number of sequences in one step, over all ranks (global batch size): any world size takes the same steps."""
    loss: LossConfig = SampledSoftmaxConfig()
    """Recommendation loss over the next item."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number type of the dense weights and activations; the tables and the optimizer's weights stay in fp32."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """ZeRO stage of DeepSpeed: what is sharded over ranks. 0: nothing. 1: the optimizer state of the dense weights. 2:
    gradients too. 3: weights too."""
    max_grad_norm: float = Field(0.0, ge=0)
    """Largest gradient norm of the dense weights; larger gradients are scaled down to it. 0 does not clip. The ID
    tables are never clipped."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of every rank; `auto` takes a GPU if torch sees one."""
    log_every: int = Field(20, ge=1)
    """Number of steps between two log lines."""
    non_finite: Literal["stop", "skip"] = "stop"
    """What happens at a batch whose loss is NaN or infinite: `stop` ends the run, `skip` counts the batch and changes
    nothing."""
    first_step_timeout_s: float = Field(1800, gt=0)
    """Seconds without progress after which a run ends, until its first step is done and while it writes a
    checkpoint."""
    step_timeout_s: float = Field(300, gt=0)
    """Seconds without progress after which a run ends, in later steps and in each batch of a validation."""
    restarts: int = Field(0, ge=0)
    """How many times `pad-dist run` restarts the ranks of a stage after one of them died, crashed or hung."""


class CheckpointConfig(Section):
    """When and where training keeps its state; nothing here changes what is trained."""

    every: int = Field(0, ge=0)
    """Number of steps between two checkpoints; 0 writes one after each validation only."""
    keep: int = Field(1, ge=1)
    """Number of newest checkpoints to keep, in addition to the best one."""
    resume: str = Field("auto", min_length=1)
    """Checkpoint that a stage resumes from: `auto` (the newest whole one), `never`, or the URL of one of its own."""
    asynchronous: bool = True
    """Write checkpoints while training continues; false makes training wait."""
    on_error: Literal["stop", "continue"] = "stop"
    """What happens after a save that failed (no space, a store that does not answer): `stop` ends the run, `continue`
    trains on without that checkpoint."""
    root: str = ""
    """Directory or fsspec URL for the checkpoints of this run. Empty keeps them in `out`, where logs always are."""


class EvaluationConfig(Section):
    """Full-catalogue ranking (docs/method.md, "Evaluation")."""

    execution_keys = frozenset({"batch_size", "cold_max_frequency"})

    batch_size: int = Field(512, ge=1)
    """Number of users that all ranks together score at once (global batch size)."""
    cold_max_frequency: int = Field(5, ge=0)
    """Largest train frequency of a cold target, in interactions."""
    every: int = Field(1, ge=1)
    """Number of epochs between two validations."""
