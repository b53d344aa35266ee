"""What determines a stage's result, and whether what it starts from is there."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pad_dist import storage
from pad_dist.config import Config, StageName
from pad_dist.data.dataset import Dataset
from pad_dist.data.text_table import text_manifest
from pad_dist.errors import UserError
from pad_dist.stages.differences import differences
from pad_dist.stages.earlier import check_fits, earlier
from pad_dist.stages.parts import Parts, command, inherits, parts, reads_text, stage_dir
from pad_dist.stages.trained_on import other_version


def check_ready(config: Config, stage: StageName, config_path: str) -> None:
    """Refuse a stage before what it starts from is trained, or without the text vectors it reads, naming the fix.

    Raises:
        UserError: see `parts`, `text_manifest`, `check_fits`; the text vectors are too narrow to start rows from; or
            an earlier stage is not trained on these settings and data.
    """
    made_of, dataset = parts(config, stage), Dataset.open(config.dataset)
    if config.continue_from:
        check_fits(config, stage, dataset, text=made_of.has_text, beside=made_of.beside)
    if reads_text(config, stage, dataset):
        width = text_manifest(dataset.url, config.text).counts["dim"]
        if made_of.text_rows and not config.continue_from and width < config.model.dim:
            raise UserError(
                f"method={config.method} starts rows of model.dim={config.model.dim} from text vectors of only {width} "
                f"dimensions: set model.dim to at most {width}, or use another text.model"
            )
    for before, _, _ in inherits(config, stage):
        if not is_trained(config, before):
            again = command(config_path, before)
            raise UserError(
                other_version(f"{stage_dir(config, before)}/result.json", dataset, again)
                or f"{stage} needs a trained {before} stage in {stage_dir(config, before)} with these settings and "
                f"data{other_settings(config, before)}: run `{again}` first"
            )


def is_trained(config: Config, stage: StageName) -> bool:
    """Whether the stage was trained to its end with these settings and data."""
    result = f"{stage_dir(config, stage)}/result.json"
    return storage.exists(result) and storage.read_json(result)["fingerprint"] == fingerprint(config, stage)


def other_settings(config: Config, stage: StageName) -> str:
    """What differs where the stage was trained to its end with other settings, in brackets; "" where it was not."""
    result = f"{stage_dir(config, stage)}/result.json"
    if not storage.exists(result):
        return ""
    return f" (there: {differences(storage.read_json(result)['made_from'], made_from(config, stage))})"


def evaluation_mark(config: Config, stage: StageName) -> str:
    """Hex digest of all that determines the stage's evaluation."""
    return f"{fingerprint(config, stage)}-{config.evaluation.cold_max_frequency}"


def fingerprint(config: Config, stage: StageName) -> str:
    """Hex digest of all that determines the stage's result: settings, data, and the stages it starts from."""
    return hashlib.sha256(json.dumps(made_from(config, stage), sort_keys=True).encode()).hexdigest()


def made_from(config: Config, stage: StageName) -> dict[str, Any]:
    """All that determines the stage's result, as JSON values by config key: settings, data, and earlier stages."""
    dataset = Dataset.open(config.dataset)
    text = None
    if reads_text(config, stage, dataset):
        text = config.text.model_dump(mode="json", include={"transform", "whitening"})
        text["vectors"] = text_manifest(dataset.url, config.text).content_hash()
    return {
        **stage_settings(config, stage),
        "dataset": dataset.content_hash,
        "text": text,
        "starts from": {before: fingerprint(config, before) for before, _, _ in inherits(config, stage)},
        "continue_from": earlier(config, stage).fingerprint if config.continue_from else None,
    }


def stage_settings(config: Config, stage: StageName) -> dict[str, Any]:
    """Those of the stage itself, known without any data: as JSON values by config key.

    Where it runs (world_size, device, logging, memory, checkpoints) does not enter.
    """
    made_of = parts(config, stage)
    sections: set[str] = {stage, made_of.beside or stage}
    return {
        "seed": config.seed,
        "model": config.stage_model(stage).model_dump(mode="json", exclude=_unused(made_of)),
        "sparse": config.sparse.model_dump(
            mode="json", exclude={"backend", "sharding", "grid_columns", "uvm", "memory_gib"}
        ),
        "training": config.training.model_dump(
            mode="json",
            exclude={"world_size", "zero_stage", "device", "log_every"}
            | {"non_finite", "first_step_timeout_s", "step_timeout_s", "restarts"},
        ),
        "evaluation": {"every": config.evaluation.every},
        **{name: getattr(config, name).model_dump(mode="json") for name in sections},
        "parts": {name: getattr(made_of, name) for name in ("recommends", "beside", "text_rows", "ranks")},
    }


def _unused(made_of: Parts) -> set[str]:
    """What of the model section no part of the stage reads."""
    unused: set[str] = set() if "neighbours" in made_of.experts else {"neighbours"}
    if "aligned" not in made_of.experts:
        unused |= {"fusion", "row_dropout"}
    if not {"aligned", "text"} & {*made_of.experts}:
        unused |= {"projector_layers", "projector_activation", "projector_dropout"}
    return unused if made_of.gate == "frequency" else unused | {"gate_init"}
