"""Twenty steps of every stage for variants of the settings, each launch in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.tiny_dataset import random_sequences, write_tiny_dataset
from tests.support.tiny_text import write_tiny_text

ROOT = Path(__file__).parents[2]
WORKER = ROOT / "tests" / "stages" / "parity_worker.py"
Losses = dict[str, dict[str, list[float]]]
IN_BATCH = "training.loss.in_batch=20 training.loss.log_q=true"
OTHERS = [
    "0 fp32 training.loss.kind=bce",
    "0 fp32 training.loss.kind=gbce model.backbone.kind=caser",
    "0 fp32 training.loss.kind=softmax model.backbone.kind=ligr",
    f"3 fp32 {IN_BATCH} model.backbone.kind=gru4rec model.backbone.layers=2",
    "2 fp32 align.alignment.kind=infonce align.anchor=false disentangle.experts=[aligned,text] disentangle.gate=none",
]
"""Each loss and each backbone once, and other experts."""
ALL_FROZEN = "disentangle.trained_text=true disentangle.freeze=[id,aligned,text]"
SMOOTH = "disentangle.gate=smooth disentangle.loss=ndcg disentangle.rare_power=0.5"
LOG_MIX = "disentangle.mix=log_probabilities"
FOUR = "disentangle.experts=[id,aligned,text,item_knn]"
METHODS = [
    "0 fp32 method=id",
    "0 fp32 method=text training.loss.kind=gbce",
    "2 fp32 method=whitenrec model.backbone.kind=gru4rec",
    "0 fp32 method=llm_init model.dim=12 training.loss.kind=bce",
    "0 fp32 method=clip align.item_share=0.5",
    "0 fp32 method=ctrl align.item_share=0.5",
    "1 fp32 method=rlmrec_con training.loss.kind=softmax",
    "3 fp32 method=rlmrec_gen model.backbone.kind=ligr",
    f"1 fp32 {ALL_FROZEN} model.backbone.kind=caser",
    f"0 fp32 {ALL_FROZEN} {FOUR} {SMOOTH} {LOG_MIX} disentangle.targets=valid text.transform=whiten",
    f"0 fp32 {LOG_MIX} {FOUR} disentangle.expert_loss=0.5 training.loss.kind=softmax",
]


def write_settings(folder: Path, **training: Any) -> Path:
    """A config file of a small model without dropout, and the dataset with texts that it names."""
    dataset = write_tiny_dataset(folder / "dataset", random_sequences(45, 60, seed=1), 60)
    write_tiny_text(dataset, 12)
    settings = {
        "name": "parity",
        "out": str(folder / "out"),
        "dataset": dataset,
        "model": {"dim": 16, "max_length": 8, "dropout": 0.0, "backbone": {"positions": "end"}},
        "training": {"batch_size": 8, "loss": {"negatives": 30}} | training,
        # Small steps: what is compared is rounding, not how far training carries it.
        "align": {"sparse_lr": 0.02},
        "disentangle": {"expert_loss": 0.5, "sparse_lr": 0.02},
    }
    file = folder / "run.json"
    file.write_text(json.dumps(settings))
    return file


def launch(world_size: int, settings: Path, target: Path, variants: list[str]) -> Losses:
    """The losses of each variant, "ZERO_STAGE PRECISION [OVERRIDE ...]", and of each stage."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size)]
    command = [*torchrun, str(WORKER), str(settings), str(target), *variants]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    content: Losses = json.loads(target.read_text())
    return content
