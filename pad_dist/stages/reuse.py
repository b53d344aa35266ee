"""A stage that another run has trained already: found by its fingerprint, and taken over as it is."""

from __future__ import annotations

import shutil
from pathlib import Path

from pad_dist import storage
from pad_dist.config import Config, StageName
from pad_dist.errors import UserError
from pad_dist.stages.fingerprint import fingerprint
from pad_dist.stages.parts import stage_dir
from pad_dist.training.checkpoint import best_checkpoint

_OWN = ("LOCK", "evaluation.json", "ranks.safetensors", "forgetting.json", "*.tmp")
"""What is not the trained stage itself."""


def finished_in(run: str, stage: str, mark: str) -> bool:
    """Whether the run at that directory has trained the stage of that fingerprint to its end."""
    result = f"{run}/{stage}/result.json"
    return storage.exists(result) and storage.read_json(result)["fingerprint"] == mark


def finished_elsewhere(config: Config, stage: StageName, root: str) -> str | None:
    """The directory of a run below `root`, at most two levels deep, that has the very stage; None if there is none.

    Raises:
        UserError: the run keeps its checkpoints elsewhere.
    """
    if config.checkpoint.root:
        raise UserError(
            "runs that share stages keep their checkpoints in their own directories: leave checkpoint.root out"
        )
    mark, own = fingerprint(config, stage), Path(config.out).resolve()
    found = (path.parents[1] for depth in ("*", "*/*") for path in Path(root).glob(f"{depth}/{stage}/result.json"))
    runs = sorted(str(run) for run in found if run.resolve() != own)
    return next((run for run in runs if finished_in(run, stage, mark) and _can_be_taken(run, stage)), None)


def take_over(config: Config, stage: StageName, source: str) -> None:
    """Copy the finished stage of the run `source` into this one, whole or not at all."""
    target = Path(stage_dir(config, stage))
    whole = target.with_name(f"{target.name}.tmp")
    shutil.rmtree(whole, ignore_errors=True)
    shutil.copytree(f"{source}/{stage}", whole, ignore=shutil.ignore_patterns(*_OWN))
    result = f"{whole}/result.json"
    storage.write_json(result, {"taken_from": source, **storage.read_json(result)})
    if target.exists():
        shutil.rmtree(target)
    whole.rename(target)


def _can_be_taken(run: str, stage: str) -> bool:
    """Not where the checkpoints lie elsewhere, or are such as this pad-dist does not read."""
    if storage.read_json(f"{run}/{stage}/result.json")["checkpoint_root"]:
        return False
    try:
        best_checkpoint(f"{run}/{stage}", made_by=run)
    except UserError:
        return False
    return True
