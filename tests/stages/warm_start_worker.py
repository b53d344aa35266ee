"""Train the stages of a run, or start them warm from another, on these ranks; what each is then goes into a .npz.

warm_start_worker.py train|start CONFIG TARGET [section.key=value ...]
"""

from __future__ import annotations

import sys
from typing import Any

from pad_dist.runtime.threads import limit_threads

limit_threads()

import numpy as np
import torch

from pad_dist.config.load import load_config
from pad_dist.distributed.context import launched
from pad_dist.evaluation.evaluate import validate
from pad_dist.stages.stage_runtime import StageRuntime, build_runtime, initialise, load_trained
from pad_dist.stages.train import train_stage
from tests.support.stages import STAGES, stage_of


@torch.no_grad()
def contents(runtime: StageRuntime) -> dict[str, Any]:
    """Whole tables, dense weights, and scores of the catalogue after item 1 and after the last known item."""
    model = runtime.model.eval()
    rows = runtime.rows(torch.arange(runtime.dataset.items + 1))
    histories = torch.tensor([1, 40])
    users = model.encode(torch.arange(2), torch.ones(2, dtype=torch.int64), runtime.rows(histories))
    values = {f"tables.{name}": table for name, table in rows.items() if name in ("id", "aligned")}
    values["share"] = rows["share"]
    values |= {f"dense.{name}": value for name, value in model.state_dict().items()}
    values["scores"] = users @ model.catalogue(rows).T
    return {f"{runtime.spec.name}.{name}": np.array(value) for name, value in values.items()}


def main(action: str, settings: str, target: str, *overrides: str) -> None:
    config = load_config(settings, list(overrides))
    arrays: dict[str, Any] = {}
    with launched(config.training) as context:
        for spec in (stage_of(config, name) for name in STAGES):
            if action == "train":
                train_stage(spec, context, validate)
                runtime = load_trained(spec, context)
            else:
                runtime = build_runtime(spec, context)
                initialise(runtime)
            arrays |= contents(runtime)
        if context.is_first:
            np.savez(target, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
