"""Check what docs/extending.md adds, in the copy of the repository that this process runs in.

Run the tests that the document adds or changes, then train one epoch with each addition.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pad_dist.runtime.threads import limit_threads

limit_threads()

import pytest
from typer.testing import CliRunner

from pad_dist.cli.main import app
from pad_dist.config.load import load_config
from pad_dist.config.reference import markdown
from pad_dist.distributed.context import DistributedContext, launched
from pad_dist.evaluation.evaluate import evaluate_stage, validate
from pad_dist.stages.fingerprint import check_ready, fingerprint
from pad_dist.stages.methods import find_stage, resolve_stages
from pad_dist.stages.train import train_stage


def use(settings: str, overrides: list[str], stage: str, out: str, context: DistributedContext) -> dict[str, Any]:
    """Plan one config, train it up to a stage and evaluate that; its fingerprint, losses and scorers."""
    plan = CliRunner().invoke(app, ["plan", "--config", settings, *overrides])
    stages = resolve_stages(load_config(settings, overrides, out))
    spec = find_stage(stages, stage)
    for one in stages[: stages.index(spec) + 1]:
        check_ready(one, settings)
        train_stage(one, context, validate)
    lines = map(json.loads, Path(spec.directory, "metrics.jsonl").read_text().splitlines())
    return {
        "plan": plan.output,
        "planned": plan.exit_code == 0,
        "fingerprint": fingerprint(spec),
        "losses": [line["loss"] for line in lines if line["kind"] == "train"],
        "scorers": list(evaluate_stage(spec, context)[0]),
    }


def main(settings: str, target: str, additions: str, *tests: str) -> None:
    """`additions` is JSON, {name: [overrides that use it, stage that it shows in]}; `tests` are files."""
    status = pytest.main(["-q", "-p", "no:cacheprovider", *tests])
    base = load_config(settings)
    found: dict[str, Any] = {"tests": int(status), "reference": markdown()}
    found["base"] = {spec.name: fingerprint(spec) for spec in resolve_stages(base)}
    with launched(base.training) as context:
        for name, (overrides, stage) in json.loads(additions).items():
            found[name] = use(settings, overrides, stage, f"{base.out}/{name}", context)
    Path(target).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
