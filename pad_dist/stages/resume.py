"""Which checkpoint a stage goes on from, and what is said of those that it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pad_dist import storage
from pad_dist.config import Config, StageName
from pad_dist.errors import UserError
from pad_dist.stages.differences import differences
from pad_dist.stages.fingerprint import made_from
from pad_dist.stages.parts import checkpoint_dir
from pad_dist.training.checkpoint import (
    checkpoint_meta,
    complete_steps,
    damaged,
    place,
    versions,
    wrong_sizes,
)
from pad_dist.training.ranks import Ranks
from pad_dist.training.shard_files import DamagedFile

Say = Callable[[str], None]


def checkpoint_to_resume(config: Config, stage: StageName, ranks: Ranks, say: Say) -> str | None:
    """The checkpoint that `checkpoint.resume` asks for, read through, the same on every rank; None: begin. Collective.

    Raises:
        UserError: the newest one was written by other libraries; or the one that is named is damaged, lies elsewhere
            or was made with other settings or data.
    """
    named = config.checkpoint.resume not in ("auto", "never")
    passed_over: set[str] = set()
    while True:
        path = ranks.from_first(lambda: _candidate(config, stage, passed_over, say))
        if not path:
            return None
        found = ranks.gather(damaged(path, ranks.rank, ranks.world_size))
        damage = [line for lines in found for line in lines]
        if not damage:
            return path
        if named:
            raise UserError(f"checkpoint.resume={path} is damaged: {'; '.join(damage)}")
        say(f"{path} is passed over: {'; '.join(damage)}")
        passed_over.add(path)


def _candidate(config: Config, stage: StageName, passed_over: set[str], say: Say) -> str:
    """The newest checkpoint that is complete, or the one that is named; "" if there is none."""
    resume, directory = config.checkpoint.resume, checkpoint_dir(config, stage)
    if resume == "never":
        return ""
    if resume != "auto" and checkpoint_meta(resume)["stage"] == stage:
        return _named(config, stage, directory)
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
        other = differences(meta["made_from"], made_from(config, stage))
        if other:
            say(f"{path} was made with other settings or data, so training begins anew: {other}")
            return ""
        _check_versions(path, meta)
        return path
    return ""


def _named(config: Config, stage: StageName, directory: str) -> str:
    path = config.checkpoint.resume.rstrip("/")
    meta = checkpoint_meta(path)
    step = int(meta["step"])
    if storage.filesystem(path) != storage.filesystem(place(directory, step)):
        best = place(storage.join(path.rpartition("/")[0]), meta["best"])
        raise UserError(
            f"checkpoint.resume={path} is not in {directory}: copy it there, and the best of its run, {best}"
        )
    other = differences(meta["made_from"], made_from(config, stage))
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
