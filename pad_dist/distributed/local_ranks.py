"""Start a launcher on ranks of this machine, and start it again where one of them is lost.

The deepspeed command would do the first, but it exits with status 1 after a signal, kills ranks that save for longer
than 30 s, ends at once on SIGTERM and leaves its ranks behind, and imports the engines twice before they start.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch.distributed as dist

from pad_dist.distributed.watchdog import last_step, watchdog_store
from pad_dist.runtime.entry import LOST_RANK_STATUS, PREEMPTED_STATUS, USER_ERROR_STATUS, print_error
from pad_dist.runtime.processes import Failure, run_children


def run_ranks(
    name: str, command: Sequence[str], world_size: int, restarts: int, say: Callable[[str], None], **environment: str
) -> None:
    """Run `command` on every rank, up to `restarts` times more after a failure that is no mistake of the user's.

    Raises:
        SystemExit: with the status of a stop by a signal, or of a mistake that a rank has told; with that of the failed
            rank, or LOST_RANK_STATUS where it was killed, after too many failures, or two at the same step.
    """
    failed_after: list[int | None] = []
    while True:
        # Ranks meet in a store of this process, which outlives each of them.
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        shared |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size), **environment}
        environments = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]
        failure = run_children([command] * world_size, environments)
        if failure is None:
            return
        if failure.status in (USER_ERROR_STATUS, PREEMPTED_STATUS):
            sys.exit(failure.status)
        failed_after.append(last_step(watchdog_store(store), world_size))
        what = _what(name, failure, failed_after[-1])
        if failed_after[-1] in failed_after[:-1]:
            print_error(f"{what}, as it did before, so that another start would not help: see the messages above")
            sys.exit(1)
        if len(failed_after) > restarts:
            print_error(f"{what}, see the messages above: run the same command again, or set training.restarts")
            sys.exit(failure.status if failure.status > 0 else LOST_RANK_STATUS)
        say(f"{what}: start {len(failed_after)} of {restarts} again")


def _what(name: str, failure: Failure, step: int | None) -> str:
    where = "before its first step" if step is None else f"after step {step}"
    return f"{name}: rank {failure.place} (pid {failure.pid}) ended {where} by {failure}"
