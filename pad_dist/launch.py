"""What each rank runs under deepspeed, torchrun or alone: the bodies of the launchers."""

from __future__ import annotations

from pad_dist import storage
from pad_dist.config import STAGES, StageName
from pad_dist.config_file import config_from_arguments
from pad_dist.entry import user_errors
from pad_dist.errors import UserError
from pad_dist.evaluation.evaluate import evaluate_stage, validate
from pad_dist.evaluation.report import console, metrics_table
from pad_dist.stages.parts import check_ready, command, evaluation_mark, is_trained, stage_dir
from pad_dist.stages.train import train_stage
from pad_dist.training.ranks import launched


def train_main(stage: StageName) -> None:
    """Train one stage on this rank; leaves its best checkpoint and `result.json`."""
    with user_errors():
        config, path = config_from_arguments(f"train the {stage} stage")
        check_ready(config, stage, path)
        with launched(config.training) as ranks:
            train_stage(config, stage, ranks, validate)


def evaluate_main() -> None:
    """Rank the catalogue with every trained stage; leaves `evaluation.json` in each stage's directory."""
    with user_errors():
        config, path = config_from_arguments("rank the full catalogue with every trained stage")
        trained: list[StageName] = [stage for stage in STAGES if is_trained(config, stage)]
        if not trained:
            raise UserError(
                f"no stage in {config.out} is trained with these settings and data: "
                f"run `{command(path, STAGES[0])}` first"
            )
        with launched(config.training) as ranks:
            for stage in trained:
                results = evaluate_stage(config, stage, ranks)
                if ranks.is_first:
                    target = f"{stage_dir(config, stage)}/evaluation.json"
                    storage.write_json(target, {"mark": evaluation_mark(config, stage), "scores": results})
                    console().print(metrics_table(f"{config.name}: {stage}", results))
