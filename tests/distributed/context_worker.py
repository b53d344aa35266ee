"""What the tests of ranks run on each of them."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from pad_dist.config import TrainingConfig
from pad_dist.distributed.context import DistributedContext, launched


def found_by_the_first() -> str:
    """Each rank would find something else."""
    assert dist.group.WORLD is not None
    context = DistributedContext(dist.get_rank(), dist.get_world_size(), torch.device("cpu"), dist.group.WORLD)
    return context.from_first(lambda: f"version of rank {context.rank}")


def shared_memory_of_an_engine() -> list[str]:
    """The compiled op and its buffers, as far as this process has them in memory."""
    from pad_dist.training.engine import build_engine

    rank, world_size = str(dist.get_rank()), str(dist.get_world_size())
    os.environ |= {"DS_ACCELERATOR": "cpu", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "LOCAL_SIZE": world_size}
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size}
    module = nn.Linear(2, 2)
    build_engine(module, [{"params": list(module.parameters())}], TrainingConfig())
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "deepspeed_" in line]


def step_on_cpu() -> tuple[str, str]:
    """The device of DeepSpeed before a launch on the CPU, and that of the weights after a step in it."""
    from deepspeed.accelerator import get_accelerator

    from pad_dist.training.engine import build_engine

    config, module, before = TrainingConfig(device="cpu"), nn.Linear(2, 2), get_accelerator().device_name()
    with launched(config):
        engine = build_engine(module, [{"params": list(module.parameters())}], config)
        engine.backward(engine(torch.ones(1, 2)).sum())
        engine.step()
        return before, module.weight.device.type
