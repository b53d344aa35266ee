"""Run a function on real gloo ranks, each its own process."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 60) -> list[Any]:
    """Results of `function(*args)` on every rank, in rank order; it must be importable.

    A rank that raises or outlives `timeout` seconds fails the test and ends the others.
    """
    context = forkserver()
    results: Any = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        places = [(f"file://{folder}/store", rank, world_size) for rank in range(world_size)]
        processes = [context.Process(target=_rank, args=(results, place, function, args)) for place in places]
        for process in processes:
            process.start()
        try:
            by_rank = dict(_result(results, timeout) for _ in processes)
            for process in processes:
                process.join(timeout)
        finally:
            for process in processes:
                process.kill()
                process.join()
    return [by_rank[rank] for rank in range(world_size)]


def forkserver() -> Any:
    """A context whose processes are forks of one that has imported the engines, which takes longer than most tests."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pad_dist.pipeline.launch", "tests.support.ranks"])
    return context


def _result(results: Any, timeout: float) -> tuple[int, Any]:
    rank, value, error = results.get(timeout=timeout)
    if error:
        raise AssertionError(f"rank {rank} failed:\n{error}")
    return rank, value


def _rank(results: Any, place: tuple[str, int, int], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    url, rank, world_size = place
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=url, rank=rank, world_size=world_size)
        results.put((rank, function(*args), None))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
