"""Train the stages of a run, or start them from an earlier one, on these ranks; what each is then goes into a .npz.

continued_worker.py train|start CONFIG TARGET [section.key=value ...]
"""

from __future__ import annotations

import sys
from typing import Any

from pad_dist.threads import limit_threads

limit_threads()

import numpy as np
import torch

from pad_dist.config_file import load_config
from pad_dist.evaluation.evaluate import validate
from pad_dist.stages.system import System, build_system, initialise, load_trained
from pad_dist.stages.train import train_stage
from pad_dist.training.ranks import launched
from tests.support.stages import STAGES


@torch.no_grad()
def told(system: System) -> dict[str, Any]:
    """Whole tables, dense weights, and scores of the catalogue after item 1 and after the last known item."""
    pad = system.pad.eval()
    rows = system.rows(torch.arange(system.dataset.items + 1))
    contexts = torch.tensor([1, 40])
    users = pad.encode(torch.arange(2), torch.ones(2, dtype=torch.int64), system.rows(contexts))
    values = {f"tables.{name}": table for name, table in rows.items() if name in ("id", "aligned")}
    values["share"] = rows["share"]
    values |= {f"dense.{name}": value for name, value in pad.state_dict().items()}
    values["scores"] = users @ pad.catalogue(rows).T
    return {f"{system.stage}.{name}": np.array(value) for name, value in values.items()}


def main(action: str, settings: str, target: str, *overrides: str) -> None:
    config = load_config(settings, list(overrides))
    found: dict[str, Any] = {}
    with launched(config.training) as ranks:
        for stage in STAGES:
            if action == "train":
                train_stage(config, stage, ranks, validate)
                system = load_trained(config, stage, ranks)
            else:
                system = build_system(config, stage, ranks)
                initialise(system)
            found |= told(system)
        if ranks.is_first:
            np.savez(target, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
