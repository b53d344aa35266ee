"""What each stage is made of, and what it takes over from its predecessors."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from pad_dist import storage
from pad_dist.config import STAGES, Config, ExpertName, StageName
from pad_dist.data.dataset import Dataset
from pad_dist.data.text_table import check_recipe, text_manifest
from pad_dist.errors import UserError


@dataclass(frozen=True)
class Parts:
    """Experts and tables of a stage.

    `inherits` lists (stage, expert there, expert here): encoder, and the table of the
    same name as the expert, are copied from that stage's checkpoint (METHOD, phases 2
    and 3); an expert that is not named starts at random.
    """

    experts: tuple[ExpertName, ...]
    tables: tuple[ExpertName, ...]
    inherits: tuple[tuple[StageName, ExpertName, ExpertName], ...] = ()


PARTS: dict[StageName, Parts] = {
    "pretrain": Parts(("id",), ("id",)),
    "align": Parts(("aligned",), ("aligned",), (("pretrain", "id", "aligned"),)),
    "disentangle": Parts(
        ("id", "aligned", "text"), ("id", "aligned"), (("pretrain", "id", "id"), ("align", "aligned", "aligned"))
    ),
}

MAIN_SCORER: dict[StageName, str] = {"pretrain": "id", "align": "aligned", "disentangle": "mixture"}
"""The score that selects a stage's checkpoint and stands for it in the report."""


def needs_text(stage: StageName) -> bool:
    """Whether the stage reads the text table."""
    return PARTS[stage].experts != ("id",)


def predecessor(stage: StageName) -> StageName | None:
    """The stage that must be trained before."""
    place = STAGES.index(stage)
    return STAGES[place - 1] if place else None


def stage_dir(config: Config, stage: StageName) -> str:
    """Where a stage writes."""
    return f"{config.out}/{stage}"


def command(config_path: str, stage: StageName) -> str:
    """The command that trains a stage."""
    return f"deepspeed launchers/{stage}.py --config {config_path}"


def check_ready(config: Config, stage: StageName, config_path: str) -> None:
    """Refuse a stage before its predecessor is trained, or on text vectors of another model, naming the fix."""
    if needs_text(stage):
        check_recipe(config.dataset, config.text)
    before = predecessor(stage)
    if before is not None and not is_trained(config, before):
        raise UserError(
            f"{stage} needs a trained {before} stage in {stage_dir(config, before)} with these settings and data: "
            f"run `{command(config_path, before)}` first"
        )


def is_trained(config: Config, stage: StageName) -> bool:
    """Whether the stage was trained to its end with these settings and data."""
    result = f"{stage_dir(config, stage)}/result.json"
    return storage.exists(result) and storage.read_json(result)["fingerprint"] == fingerprint(config, stage)


def evaluation_mark(config: Config, stage: StageName) -> str:
    """Hex digest of all that determines the stage's evaluation."""
    return f"{fingerprint(config, stage)}-{config.evaluation.cold_max_frequency}"


def fingerprint(config: Config, stage: StageName) -> str:
    """Hex digest of all that determines the stage's result: settings, data, predecessors.

    Where it runs (world_size, device, logging, memory) does not enter.
    """
    dataset = Dataset.open(config.dataset)
    before = predecessor(stage)
    settings = {
        "seed": config.seed,
        "dataset": dataset.content_hash,
        "text": [text_manifest(config.dataset).content_hash(), config.text.center] if needs_text(stage) else None,
        "model": config.model.model_dump(),
        "sparse": config.sparse.model_dump(exclude={"backend", "sharding", "memory_gib"}),
        "training": config.training.model_dump(
            exclude={"world_size", "zero_stage", "device", "log_every", "timeout_minutes"}
        ),
        "validate_every": config.evaluation.every,
        "stage": config.stage(stage).model_dump(),
        "before": fingerprint(config, before) if before else None,
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
