"""Devices and the memory that a rank may use of them: known GPUs and this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pad_dist.errors import UserError

PROFILES = {
    "l4": 24e9,
    "a100-40": 40e9,
    "a100-80": 80e9,
    "h100": 80e9,
    "h200": 141e9,
    "v100-16": 16e9,
    "v100-32": 32e9,
}
"""Bytes of GPUs, as their makers give them; a little less is free."""

FREE_SHARE = 0.1
"""Share of a GPU's memory that a plan leaves free: for CUDA's context, NCCL's buffers, and blocks that the allocator
keeps but cannot hand out. The same share of a machine's memory is left to the system and the page cache."""

GPUS_PER_HOST = 8
HOST_BYTES_PER_GPU = 128e9
"""Hosts of a profile; with `sparse.uvm` table rows may be placed in their memory."""


@dataclass(frozen=True)
class Device:
    """Where one rank works.

    Attributes:
        kind: "cuda" or "cpu".
        memory: bytes that this rank may use of it.
        host_memory: bytes of the host that this rank may use; on a CPU the same.
        ranks_per_host: how many ranks share a host.
    """

    name: str
    kind: str
    memory: int
    host_memory: int
    ranks_per_host: int

    def limited(self, gib: float | None) -> Device:
        """The device with at most `gib` GiB for each rank; None sets no limit."""
        return self if gib is None else replace(self, memory=min(self.memory, int(gib * 2**30)))


def profile(name: str, local_ranks: int = 1) -> Device:
    """The device of that name: a GPU of PROFILES, `cpu` (this machine, shared by `local_ranks`), or GiB of a GPU.

    >>> profile("h100").memory
    72000000000

    Raises:
        UserError: none of these.
    """
    if name == "cpu":
        return this_device("cpu", local_ranks)
    try:
        size = PROFILES[name] if name in PROFILES else float(name) * 2**30
    except ValueError:
        size = 0
    if not size > 0:
        raise UserError(f"no device {name}: give one of cpu, {', '.join(sorted(PROFILES))}, or a number of GiB")
    return Device(name, "cuda", _usable(size), _usable(HOST_BYTES_PER_GPU), GPUS_PER_HOST)


def this_device(kind: str, local_ranks: int) -> Device:
    """The device of this process; `local_ranks` ranks share the machine."""
    host = _usable(_machine_bytes() / local_ranks)
    if kind == "cpu":
        return Device("cpu", "cpu", host, host, local_ranks)
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Device(properties.name, "cuda", _usable(properties.total_memory), host, local_ranks)


def local_ranks(world_size: int) -> int:
    """Number of ranks on this machine, as torchrun or deepspeed sets it; all ranks, if neither does."""
    size = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE")
    return int(size) if size else world_size


def _usable(size: float) -> int:
    return int(size * (1 - FREE_SHARE))


def _machine_bytes() -> int:
    """Memory of this machine, or of the container of this process."""
    (total,) = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal")]
    limits = [int(total.split()[1]) * 1024]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        if Path(path).exists() and (text := Path(path).read_text().strip()) != "max":
            limits.append(int(text))
    return min(limits)
