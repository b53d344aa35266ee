"""Twenty steps of each of the method's stages for several variants in one launch.

A variant is ZeRO stage, precision and overrides, such as "2 bf16 model.backbone=caser".
Rank 0 writes the losses as JSON: {variant: {stage: losses}}.
"""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path

from pad_dist.threads import limit_threads

limit_threads()

from pad_dist.config import Config, StageName
from pad_dist.config_file import load_config
from pad_dist.stages.fingerprint import made_from
from pad_dist.stages.parts import stage_dir, stages
from pad_dist.stages.system import build_system, initialise
from pad_dist.stages.train import Trainer
from pad_dist.training.engine import full_state
from pad_dist.training.ranks import Ranks, launched
from tests.support.checkpoints import save

STEPS = 20


def train_steps(config: Config, stage: StageName, ranks: Ranks) -> list[float]:
    system = build_system(config, stage, ranks)
    initialise(system)
    trainer = Trainer(system)
    batches = (batch for epoch in range(1, STEPS) for batch in trainer.batches(epoch))
    losses = [trainer.step(number, batch).item() for number, batch in enumerate(islice(batches, STEPS))]
    dense = {name.removeprefix("pad."): value for name, value in full_state(trainer.objective).items()}
    meta = {"made_from": made_from(config, stage)}
    save(stage_dir(config, stage), STEPS, system.tables.parts(), ranks, dense=dense, meta=meta)
    return losses


def main(settings: str, target: str, *variants: str) -> None:
    losses: dict[str, dict[str, list[float]]] = {}
    base = load_config(settings)
    with launched(base.training) as ranks:
        for number, variant in enumerate(variants):
            zero, precision, *overrides = variant.split()
            overrides += [f"training.zero_stage={zero}", f"training.precision={precision}"]
            config = load_config(settings, overrides, out=f"{base.out}/{ranks.world_size}-{number}")
            losses[variant] = {stage: train_steps(config, stage, ranks) for stage in stages(config)}
        if ranks.is_first:
            Path(target).write_text(json.dumps(losses))


if __name__ == "__main__":
    main(*sys.argv[1:])
