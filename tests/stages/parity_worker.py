"""Twenty steps of each stage for several ZeRO stages in one launch; rank 0 writes the losses as JSON."""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path

from pad_dist.threads import limit_threads

limit_threads()

from pad_dist.config import STAGES, Config, StageName
from pad_dist.config_file import parse_config
from pad_dist.stages.parts import fingerprint, stage_dir
from pad_dist.stages.system import build_system, initialise
from pad_dist.stages.train import Trainer
from pad_dist.training.checkpoint import save_checkpoint
from pad_dist.training.engine import full_state
from pad_dist.training.ranks import Ranks, launched

STEPS = 20


def train_steps(config: Config, stage: StageName, ranks: Ranks) -> list[float]:
    system = build_system(config, stage, ranks)
    initialise(system)
    trainer = Trainer(system)
    batches = (batch for epoch in range(1, STEPS) for batch in trainer.batches(epoch))
    losses = [trainer.step(batch).item() for batch in islice(batches, STEPS)]
    dense = {name.removeprefix("pad."): value for name, value in full_state(trainer.objective).items()}
    meta = {"fingerprint": fingerprint(config, stage)}
    save_checkpoint(stage_dir(config, stage), STEPS, dense, system.tables.state(), meta, ranks)
    return losses


def main(settings: str, target: str, *zero_stages: str) -> None:
    values = json.loads(Path(settings).read_text())
    losses: dict[str, dict[str, list[float]]] = {}
    config = parse_config(values, settings)
    with launched(config.training) as ranks:
        for zero in zero_stages:
            training = values["training"] | {"zero_stage": int(zero)}
            out = f"{values['out']}/world-{ranks.world_size}-zero-{zero}"
            variant = parse_config(values | {"training": training, "out": out}, settings)
            losses[zero] = {stage: train_steps(variant, stage, ranks) for stage in STAGES}
        if ranks.is_first:
            Path(target).write_text(json.dumps(losses))


if __name__ == "__main__":
    main(*sys.argv[1:])
