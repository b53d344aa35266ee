"""What each rank runs under deepspeed, torchrun or alone: the bodies of the launchers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pad_dist import storage
from pad_dist.capacity.plan import check_capacity
from pad_dist.config import Config
from pad_dist.config.load import config_from_arguments
from pad_dist.dataset import versions
from pad_dist.dataset.reader import Dataset
from pad_dist.distributed.context import DistributedContext, launched
from pad_dist.errors import UserError
from pad_dist.evaluation.evaluate import Metrics, evaluate_stage, validate
from pad_dist.evaluation.forgetting import measure_forgetting
from pad_dist.evaluation.report import console, metrics_table, print_forgetting
from pad_dist.evaluation.target_ranks import TargetRankFile
from pad_dist.runtime.devices import local_ranks, this_device
from pad_dist.runtime.entry import user_errors
from pad_dist.stages.fingerprint import check_ready, evaluation_cache_key, is_trained, other_settings
from pad_dist.stages.methods import find_stage, resolve_stages
from pad_dist.stages.spec import StageSpec
from pad_dist.stages.train import train_stage
from pad_dist.stages.trained_on import other_version


def train_main(script: str) -> None:
    """Train the stage that a launcher is named after on this rank; leaves its best checkpoint and `result.json`."""
    name = Path(script).stem
    with user_errors():
        config, path = config_from_arguments(f"train the {name} stage")
        with launched(config.training) as context:
            spec = find_stage(resolve_stages(_pinned(config, context)), name)
            check_ready(spec, path)
            device = this_device(context.device.type, local_ranks(context.world_size))
            check_capacity(spec, device, context.world_size)
            train_stage(spec, context, validate)


def evaluate_main() -> None:
    """Rank the catalogue with every trained stage; leaves `evaluation.json` and its like in each stage's directory."""
    with user_errors():
        config, path = config_from_arguments("rank the full catalogue with every trained stage")
        with launched(config.training) as context:
            stages = resolve_stages(_pinned(config, context))
            trained = [spec for spec in stages if spec.evaluated and is_trained(spec)]
            if not trained:
                raise _nothing_trained(stages, path)
            results: dict[str, dict[str, dict[str, Metrics]]] = {}
            for spec in trained:
                before = results.get(spec.aligned_from.name, {}).get("id") if spec.aligned_from else None
                results[spec.name] = _evaluate(spec, context, before)


def _evaluate(
    spec: StageSpec, context: DistributedContext, before: dict[str, Metrics] | None
) -> dict[str, dict[str, Metrics]]:
    """Evaluate one stage and write its results. Collective.

    `before`: metrics of the ID expert that the stage is aligned from, where there is one.
    """
    results, target_ranks = evaluate_stage(spec, context)
    forgetting = None if before is None else measure_forgetting(spec, before, context)
    if context.is_first:
        key = evaluation_cache_key(spec)
        # evaluation.json comes last: who reads it may rely on what is beside it, under the same cache key.
        dataset = Dataset.open(spec.config.dataset).content_hash
        TargetRankFile(target_ranks, key, dataset).write(f"{spec.directory}/target_ranks.safetensors")
        if forgetting is not None:
            storage.write_json(f"{spec.directory}/forgetting.json", {"cache_key": key, **forgetting})
        storage.write_json(f"{spec.directory}/evaluation.json", {"cache_key": key, "scores": results})
        _print(spec, results, forgetting)
    return results


def _print(spec: StageSpec, results: dict[str, dict[str, Metrics]], forgetting: dict[str, Any] | None) -> None:
    console().print(metrics_table(f"{spec.config.name}: {spec.name}", results))
    if forgetting is not None:
        print_forgetting(spec.config.name, forgetting)


def _pinned(config: Config, context: DistributedContext) -> Config:
    """The config on one version of the dataset, the same on every rank, whatever is published meanwhile. Collective."""
    return config.model_copy(update={"dataset": context.from_first(lambda: versions.resolve(config.dataset))})


def _nothing_trained(stages: tuple[StageSpec, ...], config_path: str) -> UserError:
    first = next(spec for spec in stages if not is_trained(spec))
    again, dataset = first.command(config_path), Dataset.open(first.config.dataset)
    return UserError(
        other_version(first.result_url, dataset, again)
        or f"no stage in {first.config.out} is trained with these settings and data{other_settings(first)}: run "
        f"`{again}` first"
    )
