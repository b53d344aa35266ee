"""What each rank runs under deepspeed, torchrun or alone: the bodies of the launchers."""

from __future__ import annotations

from pad_dist import storage
from pad_dist.capacity.plan import check_capacity
from pad_dist.config import Config, StageName
from pad_dist.config_file import config_from_arguments
from pad_dist.data import versions
from pad_dist.data.dataset import Dataset
from pad_dist.devices import local_ranks, this_device
from pad_dist.entry import user_errors
from pad_dist.errors import UserError
from pad_dist.evaluation.evaluate import Metrics, evaluate_stage, validate
from pad_dist.evaluation.forgetting import measure_forgetting
from pad_dist.evaluation.rank_file import RankFile
from pad_dist.evaluation.report import console, metrics_table, print_forgetting
from pad_dist.stages.fingerprint import check_ready, evaluation_mark, is_trained, other_settings
from pad_dist.stages.parts import command, ranked_stages, stage_dir, stages
from pad_dist.stages.train import train_stage
from pad_dist.stages.trained_on import other_version
from pad_dist.training.ranks import Ranks, launched


def train_main(stage: StageName) -> None:
    """Train one stage on this rank; leaves its best checkpoint and `result.json`."""
    with user_errors():
        config, path = config_from_arguments(f"train the {stage} stage")
        with launched(config.training) as ranks:
            config = _pinned(config, ranks)
            check_ready(config, stage, path)
            device = this_device(ranks.device.type, local_ranks(ranks.world_size))
            check_capacity(config, stage, device, ranks.world_size)
            train_stage(config, stage, ranks, validate)


def evaluate_main() -> None:
    """Rank the catalogue with every trained stage; leaves `evaluation.json` and its like in each stage's directory."""
    with user_errors():
        config, path = config_from_arguments("rank the full catalogue with every trained stage")
        with launched(config.training) as ranks:
            config = _pinned(config, ranks)
            trained = [stage for stage in ranked_stages(config) if is_trained(config, stage)]
            if not trained:
                raise _nothing_trained(config, path)
            before: dict[str, Metrics] | None = None
            for stage in trained:
                results = _evaluate(config, stage, ranks, before)
                before = results.get("id") if stage == "pretrain" else before


def _evaluate(
    config: Config, stage: StageName, ranks: Ranks, before: dict[str, Metrics] | None
) -> dict[str, dict[str, Metrics]]:
    """Evaluate one stage and write what is found; `before`: what the pretrain stage's ID expert had. Collective."""
    results, every_user = evaluate_stage(config, stage, ranks)
    lost = None
    if stage == "align" and "aligned" in results and before is not None:
        lost = measure_forgetting(config, before, ranks)
    if ranks.is_first:
        target, mark = stage_dir(config, stage), evaluation_mark(config, stage)
        # First: who finds evaluation.json finds what is beside it, of the same mark.
        RankFile(every_user, mark, Dataset.open(config.dataset).content_hash).write(f"{target}/ranks.safetensors")
        if lost is not None:
            storage.write_json(f"{target}/forgetting.json", {"mark": mark, **lost})
        storage.write_json(f"{target}/evaluation.json", {"mark": mark, "scores": results})
        console().print(metrics_table(f"{config.name}: {stage}", results))
        if lost is not None:
            print_forgetting(config.name, lost)
    return results


def _pinned(config: Config, ranks: Ranks) -> Config:
    """The config on one version of the dataset, the same on every rank, whatever is published meanwhile. Collective."""
    return config.model_copy(update={"dataset": ranks.from_first(lambda: versions.resolve(config.dataset))})


def _nothing_trained(config: Config, config_path: str) -> UserError:
    first = next(stage for stage in stages(config) if not is_trained(config, stage))
    again, dataset = command(config_path, first), Dataset.open(config.dataset)
    return UserError(
        other_version(f"{stage_dir(config, first)}/result.json", dataset, again)
        or f"no stage in {config.out} is trained with these settings and data{other_settings(config, first)}: run "
        f"`{again}` first"
    )
