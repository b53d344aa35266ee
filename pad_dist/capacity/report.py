"""The plan of every stage as tables on a screen."""

from __future__ import annotations

from collections import defaultdict

from rich.table import Table

from pad_dist.capacity.plan import StagePlan, gib, plan_stage, smallest_world_size
from pad_dist.capacity.sizes import DataSize, data_size
from pad_dist.config import Config
from pad_dist.evaluation.report import console
from pad_dist.runtime.devices import FREE_SHARE, Device, profile
from pad_dist.sparse.placement import Block
from pad_dist.stages.methods import resolve_stages


def print_plan(
    config: Config,
    world_size: int | None,
    device_name: str,
    items: int | None,
    text_dim: int | None,
    ranks_per_machine: int | None,
) -> None:
    """Print one table per stage; None means the config's or the dataset's.

    Raises:
        UserError: no such device, no dataset, or nothing that TorchRec could do.
    """
    world_size = world_size or config.training.world_size
    device = profile(device_name, ranks_per_machine or world_size)
    data = data_size(config, items, text_dim)
    for spec in resolve_stages(config):
        plan = plan_stage(spec, data, device, world_size)
        console().print(stage_table(plan, smallest_world_size(spec, data, device)))


def stage_table(plan: StagePlan, fewest: int | None) -> Table:
    """Bytes on the fullest rank, line by line."""
    table = Table(title=_title(plan.stage, plan.data, plan.device, plan.world_size), title_justify="left")
    table.add_column("on the fullest rank")
    table.add_column("bytes", justify="right")
    table.add_column("where")
    where = {False: plan.device.kind, True: "host"}
    for line in plan.resident:
        table.add_row(line.name, f"{line.bytes:,}", where[line.on_host])
    for name, lines in plan.phases.items():
        table.add_section()
        for line in lines:
            table.add_row(f"{name}: {line.name}", f"{line.bytes:,}", where[line.on_host])
    table.add_section()
    for on_host, memory in ((False, plan.device.memory), (True, plan.device.host_memory)):
        if not on_host or plan.device.kind == "cuda":
            needed = plan.needed(on_host=on_host)
            table.add_row("all that stays, and the largest phase", f"{needed:,}", where[on_host])
            table.add_row(f"  may be used ({FREE_SHARE:.0%} kept free)", f"{memory:,}", where[on_host])
    table.add_row("fits", "yes" if plan.fits else "no", "")
    table.add_row("smallest number of ranks", f"{fewest:,}" if fewest else "none is enough", "")
    table.add_section()
    for line in plan.traffic:
        table.add_row(f"sent in a step: {line.name}", f"{line.bytes:,}", "")
    table.add_section()
    for text in placement(plan.blocks):
        table.add_row(text)
    return table


def placement(blocks: list[Block]) -> list[str]:
    """Where the tables are, equal neighbours in one line.

    >>> placement([Block("id", rank, 25 * rank, 25, 0, 64) for rank in range(4)])
    ['id: 25 x 64 on each of ranks 0-3 (fused)']
    """
    ranks: dict[tuple[str, int, int, str], list[int]] = defaultdict(list)
    for block in blocks:
        ranks[block.table, block.rows, block.columns, block.kernel].append(block.rank)
    return [
        f"{table}: {rows:,} x {columns} on " + _ranks(sorted(set(on))) + f" ({kernel})"
        for (table, rows, columns, kernel), on in ranks.items()
    ]


def _ranks(on: list[int]) -> str:
    if len(on) == 1:
        return f"rank {on[0]}"
    whole = on == list(range(on[0], on[-1] + 1))
    return f"each of ranks {on[0]}-{on[-1]}" if whole else f"{len(on)} ranks"


def _title(stage: str, data: DataSize, device: Device, world_size: int) -> str:
    return f"{stage}: {data.items:,} items on {world_size:,} rank(s) of {device.name}, {gib(device.memory)} each"
