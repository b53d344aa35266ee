"""Twenty steps of each of the method's stages for several variants in one launch.

A variant is ZeRO stage, precision and overrides, such as "2 bf16 model.backbone.kind=caser".
Rank 0 writes the losses as JSON: {variant: {stage: losses}}.
"""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path

from pad_dist.runtime.threads import limit_threads

limit_threads()

from pad_dist.config.load import load_config
from pad_dist.distributed.context import DistributedContext, launched
from pad_dist.stages.fingerprint import made_from
from pad_dist.stages.methods import resolve_stages
from pad_dist.stages.spec import StageSpec
from pad_dist.stages.stage_runtime import build_runtime, initialise
from pad_dist.stages.steps import Stepper
from pad_dist.training.engine import full_state
from tests.support.checkpoints import save

STEPS = 20


def train_steps(spec: StageSpec, context: DistributedContext) -> list[float]:
    runtime = build_runtime(spec, context)
    initialise(runtime)
    stepper = Stepper(runtime)
    batches = (batch for epoch in range(1, STEPS) for batch in stepper.batches(epoch))
    losses = [stepper.step(number, batch).item() for number, batch in enumerate(islice(batches, STEPS))]
    dense = {name.removeprefix("model."): value for name, value in full_state(stepper.objective).items()}
    meta = {"made_from": made_from(spec)}
    save(spec.directory, STEPS, runtime.tables.shards(), context, dense=dense, meta=meta)
    return losses


def main(settings: str, target: str, *variants: str) -> None:
    losses: dict[str, dict[str, list[float]]] = {}
    base = load_config(settings)
    with launched(base.training) as context:
        for number, variant in enumerate(variants):
            zero, precision, *overrides = variant.split()
            overrides += [f"training.zero_stage={zero}", f"training.precision={precision}"]
            config = load_config(settings, overrides, out=f"{base.out}/{context.world_size}-{number}")
            losses[variant] = {spec.name: train_steps(spec, context) for spec in resolve_stages(config)}
        if context.is_first:
            Path(target).write_text(json.dumps(losses))


if __name__ == "__main__":
    main(*sys.argv[1:])
