"""The batches of each stage's trainer on one rank; writes the share of items that count in alignments as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pad_dist.threads import limit_threads

limit_threads()

import torch

from pad_dist.config_file import load_config
from pad_dist.stages.system import build_system
from pad_dist.stages.train import Trainer
from pad_dist.training.ranks import launched
from tests.support.stages import STAGES


def main(settings: str, target: str) -> None:
    shares = {}
    with launched(load_config(settings).training) as ranks:
        for method, stage in [*(("pad", stage) for stage in STAGES), ("ctrl", "align")]:
            config = load_config(settings, [f"method={method}"])
            batches = Trainer(build_system(config, stage, ranks)).batches(epoch=1)
            shares[f"{method} {stage}"] = torch.cat([batch.occurrences > 0 for batch in batches]).float().mean().item()
    Path(target).write_text(json.dumps(shares))


if __name__ == "__main__":
    main(*sys.argv[1:])
