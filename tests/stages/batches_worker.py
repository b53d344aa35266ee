"""The batches of each stage on one rank; writes the share of items that count in alignments as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pad_dist.runtime.threads import limit_threads

limit_threads()

import torch

from pad_dist.config.load import load_config
from pad_dist.distributed.context import launched
from pad_dist.stages.stage_runtime import build_runtime
from pad_dist.stages.steps import Stepper
from tests.support.stages import STAGES, stage_of


def main(settings: str, target: str) -> None:
    shares = {}
    with launched(load_config(settings).training) as context:
        for method, stage in [*(("pad", stage) for stage in STAGES), ("ctrl", "align")]:
            config = load_config(settings, [f"method={method}"])
            batches = Stepper(build_runtime(stage_of(config, stage), context)).batches(epoch=1)
            shares[f"{method} {stage}"] = torch.cat([batch.occurrences > 0 for batch in batches]).float().mean().item()
    Path(target).write_text(json.dumps(shares))


if __name__ == "__main__":
    main(*sys.argv[1:])
