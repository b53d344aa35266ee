"""DeepSpeed around the dense module; the sparse tables stay outside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator, set_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_get_local_fp32_param,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn
from torch.nn import functional

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
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "bf16": {"enabled": config.precision == "bf16"},
        "zero_optimization": {"stage": config.zero_stage},
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
    _accelerate(next(module.parameters()).device.type)
    optimizer = torch.optim.AdamW(list(groups), fused=False)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
    return engine


def _accelerate(kind: str) -> None:
    """Let DeepSpeed compute on that kind of device: when imported it has taken a GPU where there is one."""
    if get_accelerator().device_name() != kind:
        set_accelerator(CPU_Accelerator() if kind == "cpu" else CUDA_Accelerator())


def full_state(module: nn.Module) -> dict[str, Tensor]:
    """The module's whole state in fp32 on every rank, also under ZeRO-3. Collective."""
    parameters = list(module.parameters())
    with deepspeed.zero.GatheredParameters(parameters, enabled=any(hasattr(p, "ds_id") for p in parameters)):
        return {name: value.detach().float().clone() for name, value in module.state_dict().items()}


_MOMENTS = ("exp_avg", "exp_avg_sq")


def optimizer_state(engine: deepspeed.DeepSpeedEngine) -> dict[str, Tensor]:
    """AdamW's moments, its step and the fp32 weights of all trained parameters, whole on every rank. Collective.

    The same at any world size and under any ZeRO stage, so that it loads at any other. There is none before the
    first step.
    """
    _find_state(engine)
    adamw, whole = _adamw(engine), _whole_weights(engine)
    state = {"step": next(iter(adamw.state.values()))["step"].clone()}
    for name, parameter in _trained(engine):
        if parameter in whole:
            weight = whole[parameter]
            values = [weight, *(adamw.state[weight][moment] for moment in _MOMENTS)]
        else:
            values = [safe_get_full_fp32_param(parameter)]
            values += [safe_get_full_optimizer_state(parameter, moment) for moment in _MOMENTS]
        for key, value in zip(("weight", *_MOMENTS), values, strict=True):
            state[f"{name}.{key}"] = value.detach().clone().view_as(values[0])
    return state


@torch.no_grad()
def load_optimizer_state(engine: deepspeed.DeepSpeedEngine, state: dict[str, Tensor]) -> None:
    """Give the engine what `optimizer_state` gave, after at least one step has made room for it. Collective."""
    _find_state(engine)
    adamw, whole = _adamw(engine), _whole_weights(engine)
    for name, parameter in _trained(engine):
        if parameter in whole:
            weight = whole[parameter]
            weight.copy_(state[f"{name}.weight"])
            for moment in _MOMENTS:
                adamw.state[weight][moment].copy_(state[f"{name}.{moment}"])
        else:
            _set_cut(parameter, state[f"{name}.weight"])
            for moment in _MOMENTS:
                _set_cut(parameter, state[f"{name}.{moment}"], moment)
    for values in adamw.state.values():
        values["step"].copy_(state["step"])


def _set_cut(parameter: nn.Parameter, value: Tensor, moment: str | None = None) -> None:
    """Set the fp32 weight, or a moment, of a parameter that ZeRO has cut over the ranks."""
    if not hasattr(parameter, "ds_id"):
        if moment is None:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, moment)
        return
    # ZeRO-3's own way to set a whole value fails where the last rank's part is padded.
    size = safe_get_local_fp32_param(parameter).numel()
    padded = functional.pad(value.flatten(), (0, size * dist.get_world_size() - value.numel()))
    part = padded.narrow(0, size * dist.get_rank(), size)
    if moment is None:
        safe_set_local_fp32_param(parameter, part)
    else:
        safe_set_local_optimizer_state(parameter, part, moment)


def _trained(engine: deepspeed.DeepSpeedEngine) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in engine.module.named_parameters() if p.requires_grad)


def _adamw(engine: deepspeed.DeepSpeedEngine) -> torch.optim.AdamW:
    """The optimizer inside DeepSpeed's."""
    optimizer = engine.optimizer
    while not isinstance(optimizer, torch.optim.AdamW):
        optimizer = optimizer.optimizer
    return optimizer


def _whole_weights(engine: deepspeed.DeepSpeedEngine) -> dict[nn.Parameter, Tensor]:
    """Parameters of the module -> what AdamW steps for them; none where ZeRO has cut them."""
    optimizer = engine.optimizer
    if isinstance(optimizer, torch.optim.AdamW):
        return {p: p for group in optimizer.param_groups for p in group["params"]}
    if hasattr(optimizer, "fp32_groups"):
        groups = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
        return {low: full for lows, fulls in groups for low, full in zip(lows, fulls, strict=True)}
    return {}


def _find_state(engine: deepspeed.DeepSpeedEngine) -> None:
    """Let ZeRO 1 and 2 look for optimizer state again: they do so only if it exists for the first group."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "_hp_optimizer_states_linked"):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()
