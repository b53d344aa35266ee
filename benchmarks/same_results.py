"""Whether two checkouts train the same weights and evaluate them alike, to the bit, whatever they call things.

    python benchmarks/same_results.py BEFORE AFTER

Both are folders of runs, such as BEFORE/id-1 and BEFORE/pad-2: equal names are compared. Of each stage the tensors of
its best checkpoint, the optimizers' state and the target ranks of every user are compared as multisets of contents, and
the scores as multisets of metrics, so that a renamed tensor, key or scorer is no difference.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from safetensors import safe_open

Digests = Counter[str]
RANK_FILES = ("target_ranks.safetensors", "ranks.safetensors")


def tensors(file: Path) -> Digests:
    """Type, shape and content of each tensor in a file."""
    digests: Digests = Counter()
    with safe_open(file, framework="np") as content:
        for name in content.keys():  # noqa: SIM118 (no mapping)
            tensor = np.ascontiguousarray(content.get_tensor(name))
            digests[f"{tensor.dtype} {tensor.shape} {hashlib.sha256(tensor.tobytes()).hexdigest()}"] += 1
    return digests


def stage_digests(stage: Path) -> dict[str, Digests]:
    """What a stage has left, by kind."""
    best = max(stage.glob("step-*/COMPLETE"), key=lambda file: json.loads(file.read_text())["step"])
    step = json.loads(best.read_text())["best"]
    checkpoint = stage / f"step-{step:09d}"
    weights: Digests = Counter()
    for file in sorted(checkpoint.glob("*.safetensors")):
        weights += tensors(file)
    digests = {"weights and optimizer": weights}
    if (evaluation := stage / "evaluation.json").exists():
        scores = json.loads(evaluation.read_text())["scores"].values()
        digests["metrics"] = Counter(json.dumps(metrics, sort_keys=True) for metrics in scores)
        digests["target ranks"] = tensors(next(stage / name for name in RANK_FILES if (stage / name).exists()))
    return digests


def differences(before: Path, after: Path) -> list[str]:
    """What differs between two runs."""
    stages = [{result.parent.name for result in run.glob("*/result.json")} for run in (before, after)]
    if stages[0] != stages[1]:
        return [f"stages {sorted(stages[0])} and {sorted(stages[1])}"]
    lines = []
    for name in sorted(stages[0]):
        one, other = stage_digests(before / name), stage_digests(after / name)
        for kind in one | other:
            if one.get(kind) != other.get(kind):
                lines.append(f"{name}: {kind}")
    return lines


def main() -> int:
    """Compare all runs; status 1 if one differs or is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    folders = parser.parse_args()
    names = sorted(run.parent.name for run in folders.before.glob("*/report.json"))
    different = 0
    for name in names:
        done = (folders.after / name / "report.json").exists()
        lines = differences(folders.before / name, folders.after / name) if done else ["no finished run"]
        different += bool(lines)
        print(f"{name}: {'; '.join(lines) or 'equal'}")
    print(f"{len(names) - different} of {len(names)} runs are equal")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
