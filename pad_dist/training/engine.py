"""DeepSpeed around the dense module; the sparse tables stay outside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from pad_dist.config import TrainingConfig

# On CPU every start would compile and load an op that serves inference alone, behind a file lock that a killed run
# leaves for ever, and keep 66 MiB of /dev/shm for each rank, also after the end. Training needs no compiled op.
deepspeed.ops.__compatible_ops__ = {}


def build_engine(
    module: nn.Module, groups: Sequence[dict[str, Any]], config: TrainingConfig
) -> deepspeed.DeepSpeedEngine:
    """Wrap the dense module with AdamW and ZeRO. Collective.

    Args:
        groups: AdamW parameter groups: params, lr, weight_decay.
    """
    settings = {
        # Nominal: the loader owns batches; DeepSpeed only wants a number that divides.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": config.gradient_accumulation,
        "gradient_clipping": config.clip,
        "bf16": {"enabled": config.precision == "bf16"},
        "zero_optimization": {"stage": config.zero_stage},
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
    optimizer = torch.optim.AdamW(list(groups), fused=False)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
    return engine


def full_state(module: nn.Module) -> dict[str, Tensor]:
    """The module's whole state in fp32 on every rank, also under ZeRO-3. Collective."""
    parameters = list(module.parameters())
    with deepspeed.zero.GatheredParameters(parameters, enabled=any(hasattr(p, "ds_id") for p in parameters)):
        return {name: value.detach().float().clone() for name, value in module.state_dict().items()}
