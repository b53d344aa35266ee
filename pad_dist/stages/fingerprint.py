"""What determines a stage's result, and whether what it starts from is ready."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pad_dist import storage
from pad_dist.dataset.reader import Dataset
from pad_dist.dataset.text_table import text_manifest
from pad_dist.errors import UserError
from pad_dist.stages.differences import differences
from pad_dist.stages.spec import StageSpec
from pad_dist.stages.trained_on import other_version
from pad_dist.stages.warm_start import check_fits, find_warm_start


def check_ready(spec: StageSpec, config_path: str) -> None:
    """Refuse a stage before what it starts from is trained, or without the text vectors it reads, naming the fix.

    Raises:
        UserError: see `text_manifest`, `check_fits`; the text vectors are too narrow to start rows from; or an earlier
            stage is not trained on these settings and data.
    """
    config, dataset = spec.config, Dataset.open(spec.config.dataset)
    if config.warm_start:
        check_fits(spec, dataset)
    if reads_text(spec, dataset):
        width = text_manifest(dataset.url, config.text).counts["dim"]
        if spec.rows_from_text and not config.warm_start and width < config.model.dim:
            raise UserError(
                f"method={config.method} starts rows of model.dim={config.model.dim} from text vectors of only {width} "
                f"dimensions: set model.dim to at most {width}, or use another text.model"
            )
    for before in (one.stage for one in spec.inherits):
        if not is_trained(before):
            again = before.command(config_path)
            raise UserError(
                other_version(before.result_url, dataset, again)
                or f"{spec.name} needs a trained {before.name} stage in {before.directory} with these settings and "
                f"data{other_settings(before)}: run `{again}` first"
            )


def reads_text(spec: StageSpec, dataset: Dataset) -> bool:
    """Whether the stage reads text vectors: for its model, its first rows, or those of items new to a warm start."""
    if spec.needs_text:
        return True
    if not spec.config.warm_start:
        return spec.rows_from_text
    return not spec.config.sparse.hashed and dataset.items > find_warm_start(spec).items


def is_trained(spec: StageSpec) -> bool:
    """Whether the stage was trained to its end with these settings and data."""
    return storage.exists(spec.result_url) and storage.read_json(spec.result_url)["fingerprint"] == fingerprint(spec)


def other_settings(spec: StageSpec) -> str:
    """How the settings of a finished stage differ from these, in brackets; "" if it is not finished."""
    if not storage.exists(spec.result_url):
        return ""
    return f" (there: {differences(storage.read_json(spec.result_url)['made_from'], made_from(spec))})"


def evaluation_cache_key(spec: StageSpec) -> str:
    """Digest of all that determines the stage's evaluation."""
    return f"{fingerprint(spec)}-{spec.config.evaluation.cold_max_frequency}"


def fingerprint(spec: StageSpec) -> str:
    """Hex digest of all that determines the stage's result: settings, data, and the stages it starts from."""
    return hashlib.sha256(json.dumps(made_from(spec), sort_keys=True).encode()).hexdigest()


def made_from(spec: StageSpec) -> dict[str, Any]:
    """All that determines the stage's result, as JSON values by config key: settings, data, and earlier stages."""
    config, dataset = spec.config, Dataset.open(spec.config.dataset)
    text = None
    if reads_text(spec, dataset):
        text = config.text.model_dump(mode="json", include={"transform", "whitening"})
        text["vectors"] = text_manifest(dataset.url, config.text).content_hash()
    return {
        **spec.result_settings(),
        "dataset": dataset.content_hash,
        "text": text,
        "starts from": {one.stage.name: fingerprint(one.stage) for one in spec.inherits},
        "warm_start": find_warm_start(spec).fingerprint if config.warm_start else None,
    }
