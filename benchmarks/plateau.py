"""What keeps the paper's preset on its popularity plateau: one change at a time, for a few epochs.

    python -m benchmarks.plateau --data DATA --dir DIR [--epochs 12]

DATA holds Prime Pantry's interactions.csv.gz and items.csv.gz. Trains the pretrain stage of
configs/paper_prime_pantry.yaml as it is, then with a hundred times its learning rate and a change of
the loss, the depth or the place of the layer norm. A variant that DIR holds is not trained again.
The cosine is the mean over all pairs of users' vectors: 1 when every user is given the same list.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from pad_dist.runtime.threads import limit_threads

limit_threads()

import torch
import torch.nn.functional as F

from pad_dist.config.load import load_config
from pad_dist.data.loader import eval_batches
from pad_dist.distributed.context import launched
from pad_dist.evaluation.evaluate import evaluate
from pad_dist.pipeline.run import run
from pad_dist.pipeline.steps import Run, pinned
from pad_dist.stages.methods import find_stage
from pad_dist.stages.stage_runtime import StageRuntime, build_runtime, initialise, load_trained

CONFIG = Path(__file__).parents[1] / "configs" / "paper_prime_pantry.yaml"
FAST = ["pretrain.lr=1e-3", "pretrain.sparse_lr=1e-3"]
VARIANTS = {
    "as it is": [],
    "lr 1e-3": FAST,
    "lr 1e-3, sampled softmax": [*FAST, "training.loss={kind: sampled_softmax, negatives: 2048}"],
    "lr 1e-3, pre-norm": [*FAST, "model.backbone.norm=pre"],
    "lr 1e-3, one block": [*FAST, "model.backbone.blocks=1"],
    "lr 1e-3, one block, pre-norm": [*FAST, "model.backbone.blocks=1", "model.backbone.norm=pre"],
}


def main() -> None:
    """Print what is expected and, when all variants are trained, a line for each and the score of popularity."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--dir", type=Path, required=True, help="for the dataset and the runs; they are kept")
    parser.add_argument("--epochs", type=int, default=12)
    args = parser.parse_args()
    print("expected: users' vectors become one vector with five post-norm blocks, whatever the rate or the loss;")
    print("with one block or with pre-norm they do not, and hr@10 rises above that of popularity\n", flush=True)
    lines, popularity = list[str](), 0.0
    for name, changes in VARIANTS.items():
        out = args.dir / name.replace(",", "").replace(" ", "-")
        overrides = [
            f"data.interactions={args.data}/interactions.csv.gz",
            f"data.items={args.data}/items.csv.gz",
            f"dataset={args.dir}/dataset",
            f"pretrain.epochs={args.epochs}",
            *changes,
        ]
        config = load_config(str(CONFIG), overrides, str(out))
        run(config, str(CONFIG), overrides, lambda line: print(line, file=sys.stderr), until="pretrain")
        spec = find_stage(pinned(Run(config, ())).stages, "pretrain")
        with launched(config.training) as context, torch.no_grad():
            untrained = build_runtime(spec, context)
            initialise(untrained)
            trained = load_trained(spec, context)
            if not lines:
                popularity = evaluate(trained, trained.model.eval(), "valid", ["popularity"])["popularity"]["hr@10"]
            scores = validations(out / "pretrain" / "metrics.jsonl")
            best = max(scores, key=lambda epoch: scores[epoch])
            cosines = f"{user_cosine(untrained):.4f} | {user_cosine(trained):.4f}"
            lines.append(f"| {name} | {max(scores)} | {scores[best]:.4f} | {best} | {cosines} |")
    print("\n| variant | epochs | valid hr@10, best | at epoch | cosine untrained | cosine at best |")
    print("|---|---|---|---|---|---|")
    print("\n".join(lines))
    print(f"\nvalidation hr@10 of popularity: {popularity:.4f}")


def validations(metrics: Path) -> dict[int, float]:
    """hr@10 after each epoch."""
    lines = map(json.loads, metrics.read_text().splitlines())
    return {line["epoch"]: line["hr@10"] for line in lines if line["kind"] == "valid" and line["epoch"]}


def user_cosine(runtime: StageRuntime) -> float:
    """Mean cosine of the vectors of two different users, each from the history before the validation target."""
    model, config, context = runtime.model.eval(), runtime.config, runtime.context
    total, users = torch.zeros(config.model.dim), 0
    for host_batch in eval_batches(
        runtime.dataset,
        "valid",
        batch_size=config.evaluation.batch_size,
        max_length=config.model.max_length,
        rank=context.rank,
        world_size=context.world_size,
    ):
        batch = runtime.eval_to_device(host_batch)
        vectors = model.encode(batch.inputs, batch.lengths, runtime.rows(batch.items))
        total += F.normalize(vectors, dim=1).sum(dim=0)
        users += len(vectors)
    # |sum of unit vectors|^2 is the sum over all ordered pairs, each user with itself included.
    return float((total @ total - users) / (users * (users - 1)))


if __name__ == "__main__":
    main()
