"""Which checkpoint a stage resumes from, and what it reports of those that it passes over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pad_dist import storage
from pad_dist.checkpoint.files import (
    checkpoint_meta,
    complete_steps,
    damaged,
    place,
    versions,
    wrong_sizes,
)
from pad_dist.checkpoint.shard_files import DamagedFile
from pad_dist.distributed.context import DistributedContext
from pad_dist.errors import UserError
from pad_dist.stages.differences import differences
from pad_dist.stages.fingerprint import made_from
from pad_dist.stages.spec import StageSpec

Say = Callable[[str], None]


def checkpoint_to_resume(spec: StageSpec, context: DistributedContext, say: Say) -> str | None:
    """The checkpoint that `checkpoint.resume` asks for, read through, the same on every rank; None: begin. Collective.

    Raises:
        UserError: the newest one was written by other libraries; or the one that is named is damaged, is elsewhere
            or was made with other settings or data.
    """
    named = spec.config.checkpoint.resume not in ("auto", "never")
    passed_over: set[str] = set()
    while True:
        path = context.from_first(lambda: _candidate(spec, passed_over, say))
        if not path:
            return None
        damage = [line for lines in context.gather(damaged(path, context.rank, context.world_size)) for line in lines]
        if not damage:
            return path
        if named:
            raise UserError(f"checkpoint.resume={path} is damaged: {'; '.join(damage)}")
        say(f"{path} is passed over: {'; '.join(damage)}")
        passed_over.add(path)


def _candidate(spec: StageSpec, passed_over: set[str], say: Say) -> str:
    """The newest checkpoint that is complete, or the one that is named; "" if there is none."""
    resume, directory = spec.config.checkpoint.resume, spec.checkpoint_directory
    if resume == "never":
        return ""
    if resume != "auto" and checkpoint_meta(resume)["stage"] == spec.name:
        return _named(spec, directory)
    for step in complete_steps(directory):
        path = place(directory, step)
        if path in passed_over:
            continue
        try:
            meta = checkpoint_meta(path)
            wrong = wrong_sizes(path) + wrong_sizes(place(directory, meta["best"]))
        except DamagedFile as error:
            wrong = [str(error)]
        if wrong:
            say(f"{path} is passed over, damaged: {', '.join(sorted(set(wrong)))}")
            continue
        other = differences(meta["made_from"], made_from(spec))
        if other:
            say(f"{path} was made with other settings or data, so training begins anew: {other}")
            return ""
        _check_versions(path, meta)
        return path
    return ""


def _named(spec: StageSpec, directory: str) -> str:
    path = spec.config.checkpoint.resume.rstrip("/")
    meta = checkpoint_meta(path)
    step = int(meta["step"])
    if storage.filesystem(path) != storage.filesystem(place(directory, step)):
        best = place(storage.join(path.rpartition("/")[0]), meta["best"])
        raise UserError(
            f"checkpoint.resume={path} is not in {directory}: copy it there, and the best of its run, {best}"
        )
    other = differences(meta["made_from"], made_from(spec))
    if other:
        raise UserError(
            f"checkpoint.resume={path} was made with other settings or data: {other}: set them as they were, or name "
            "another checkpoint"
        )
    return path


def _check_versions(path: str, meta: dict[str, Any]) -> None:
    other = differences(meta["versions"], versions())
    if other:
        raise UserError(
            f"{path} was written by other libraries: {other}: install those, or set checkpoint.resume={path} to go on "
            "with these, or checkpoint.resume=never to train from the beginning"
        )
