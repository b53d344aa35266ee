"""A stage that another run has trained already: recognised by its fingerprint, and copied as it is."""

from __future__ import annotations

import shutil
from pathlib import Path

from pad_dist import storage
from pad_dist.checkpoint.files import best_checkpoint
from pad_dist.errors import UserError
from pad_dist.stages.fingerprint import fingerprint
from pad_dist.stages.spec import StageSpec

_OWN = ("LOCK", "evaluation.json", "target_ranks.safetensors", "forgetting.json", "*.tmp")
"""What is not the trained stage itself."""


def finished_in(run: str, stage: str, wanted: str) -> bool:
    """Whether the run at that directory has trained the stage of that fingerprint to its end."""
    result = f"{run}/{stage}/result.json"
    return storage.exists(result) and storage.read_json(result)["fingerprint"] == wanted


def finished_elsewhere(spec: StageSpec, root: str) -> str | None:
    """The directory of a run below `root`, at most two levels deep, that has the very stage; None if there is none.

    Raises:
        UserError: the run keeps its checkpoints elsewhere.
    """
    if spec.config.checkpoint.root:
        raise UserError(
            "runs that share stages keep their checkpoints in their own directories: leave checkpoint.root out"
        )
    wanted, own, name = fingerprint(spec), Path(spec.config.out).resolve(), spec.name
    results = (path for depth in ("*", "*/*") for path in Path(root).glob(f"{depth}/{name}/result.json"))
    runs = sorted(str(path.parents[1]) for path in results if path.parents[1].resolve() != own)
    return next((run for run in runs if finished_in(run, name, wanted) and _can_be_taken(run, name)), None)


def take_over(spec: StageSpec, source: str) -> None:
    """Copy the finished stage of the run `source` into this one, whole or not at all."""
    target = Path(spec.directory)
    whole = target.with_name(f"{target.name}.tmp")
    shutil.rmtree(whole, ignore_errors=True)
    shutil.copytree(f"{source}/{spec.name}", whole, ignore=shutil.ignore_patterns(*_OWN))
    result = f"{whole}/result.json"
    storage.write_json(result, {"taken_from": source, **storage.read_json(result)})
    if target.exists():
        shutil.rmtree(target)
    whole.rename(target)


def _can_be_taken(run: str, stage: str) -> bool:
    """Whether its checkpoints are in its own directory, in a format that this pad-dist reads."""
    if storage.read_json(f"{run}/{stage}/result.json")["checkpoint_root"]:
        return False
    try:
        best_checkpoint(f"{run}/{stage}", made_by=run)
    except UserError:
        return False
    return True
