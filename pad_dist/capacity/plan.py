"""The plan of a stage: what a rank needs, whether that fits, and how many ranks it takes."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass

from pad_dist.capacity.buffers import phases
from pad_dist.capacity.lines import Line, total
from pad_dist.capacity.resident import resident
from pad_dist.capacity.sizes import DataSize, data_size, step_size
from pad_dist.capacity.traffic import traffic
from pad_dist.config import Config
from pad_dist.errors import UserError
from pad_dist.runtime.devices import Device
from pad_dist.sparse.build import check_kernels, place
from pad_dist.sparse.placement import Block, PlacementError, block_bytes, in_closed_form
from pad_dist.stages.spec import StageSpec

MOST_RANKS = 1 << 17
"""No more ranks are tried."""


@dataclass(frozen=True)
class StagePlan:
    """What the fullest rank of a stage needs.

    Attributes:
        blocks: where the tables are, of all ranks.
        resident: lines that stay from start to end.
        phases: what start, step, evaluation and save need beside; they do not overlap, so the largest counts.
        traffic: bytes that the rank sends in one step.
    """

    stage: str
    world_size: int
    device: Device
    data: DataSize
    blocks: list[Block]
    resident: list[Line]
    phases: dict[str, list[Line]]
    traffic: list[Line]

    def needed(self, *, on_host: bool = False) -> int:
        """Most bytes on the device (on a CPU: in all), or in its host's memory."""
        transient = max(total(lines, on_host=on_host) for lines in self.phases.values())
        return total(self.resident, on_host=on_host) + transient

    @property
    def fits(self) -> bool:
        """Whether the rank's memory is enough, and its host's."""
        return self.needed() <= self.device.memory and self.needed(on_host=True) <= self.device.host_memory


def plan_stage(spec: StageSpec, data: DataSize, device: Device, world_size: int, ranks: int | None = None) -> StagePlan:
    """Plan a stage on `world_size` ranks, each of which has a `device`. Allocates nothing.

    Args:
        ranks: see `place`.

    Raises:
        UserError: there is no kernel, or TorchRec's planner finds no placement.
    """
    config = spec.config
    check_kernels(config.sparse, device.kind)
    device = device.limited(config.sparse.memory_gib)
    blocks = place(spec.table_spec(data.items), config.sparse, device, world_size, ranks)
    step = step_size(config, data.items, world_size)
    return StagePlan(
        spec.name,
        world_size,
        device,
        data,
        blocks,
        resident(spec, data, device, world_size, _fullest(blocks, config)),
        phases(spec, data, device, world_size, step),
        traffic(spec, data, world_size, step, blocks),
    )


def _fullest(blocks: list[Block], config: Config) -> list[Block]:
    """The blocks of the rank that holds the most bytes of tables."""
    by_rank: dict[int, list[Block]] = defaultdict(list)
    for block in blocks:
        by_rank[block.rank].append(block)
    return max(
        by_rank.values(), key=lambda own: sum(sum(block_bytes(block, config.sparse)) for block in own), default=[]
    )


def smallest_world_size(spec: StageSpec, data: DataSize, device: Device) -> int | None:
    """Fewest ranks on which the stage fits, None if no number of them does.

    More ranks make every line shorter or leave it, but for some buffers of collectives.
    """

    def fits(world_size: int) -> bool:
        try:
            return plan_stage(spec, data, device, world_size, ranks=1).fits
        except PlacementError:
            return False

    if spec.config.sparse.backend == "torch":
        return 1 if fits(1) else None
    # The planner takes long for many ranks; in closed form there is one placement for any number.
    most = MOST_RANKS if in_closed_form(spec.config.sparse) else 1024
    enough = 1
    while not fits(enough):
        enough *= 2
        if enough > most:
            return None
    return bisect_left(range(enough + 1), True, lo=enough // 2 + 1, hi=enough, key=fits) if enough > 1 else 1


def check_capacity(spec: StageSpec, device: Device, world_size: int) -> None:
    """Refuse a stage that cannot fit, before anything is allocated.

    Raises:
        UserError: what is needed, what there is, and how many ranks would do.
    """
    data = data_size(spec.config)
    plan = plan_stage(spec, data, device, world_size)
    if plan.fits:
        return
    on_host = plan.needed() <= plan.device.memory
    memory = plan.device.host_memory if on_host else plan.device.memory
    fewest = smallest_world_size(spec, data, device)
    shared = f", {device.ranks_per_host} to a machine" if device.kind == "cpu" else ""
    raise UserError(
        f"{spec.name} of {data.items:,} items needs {gib(plan.needed(on_host=on_host))} on each of {world_size} rank(s)"
        f"{' in the host' if on_host else ''}, which has {gib(memory)} for it: "
        + (f"use at least {fewest} ranks{shared}" if fewest else "no number of ranks is enough")
        + " (`pad-dist plan` tells what takes how much)"
    )


def gib(size: float) -> str:
    """Bytes in words: three digits of GiB."""
    return f"{size / 2**30:,.3g} GiB"
