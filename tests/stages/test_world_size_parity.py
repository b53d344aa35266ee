"""The same global batches on 1 and 2 ranks under every ZeRO stage give the same losses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.stages import STAGES
from tests.support.tiny_dataset import random_sequences, write_tiny_dataset
from tests.support.tiny_text import write_tiny_text

WORKER = Path(__file__).with_name("parity_worker.py")
ROOT = Path(__file__).parents[2]
Losses = dict[str, dict[str, list[float]]]
IN_BATCH = "training.loss.in_batch=20 training.loss.log_q=true"
OTHERS = [
    "0 fp32 training.loss.kind=bce",
    "0 fp32 training.loss.kind=gbce model.backbone=caser",
    "0 fp32 training.loss.kind=softmax model.backbone=ligr",
    f"3 fp32 {IN_BATCH} model.backbone=gru4rec model.blocks=2",
    "2 fp32 align.alignment=infonce align.anchor=false disentangle.experts=[aligned,text] disentangle.gate=none",
]
"""Each loss and each backbone once, and other parts."""
ALL_FROZEN = "disentangle.trained_text=true disentangle.freeze=[id,aligned,text]"
SMOOTH = "disentangle.gate=smooth disentangle.loss=ndcg disentangle.rare_power=0.5"
LOG_MIX = "disentangle.mix=log_probabilities"
FOUR = "disentangle.experts=[id,aligned,text,neighbours]"
METHODS = [
    "0 fp32 method=id",
    "0 fp32 method=text training.loss.kind=gbce",
    "2 fp32 method=whitenrec model.backbone=gru4rec",
    "0 fp32 method=llm_init model.dim=12 training.loss.kind=bce",
    "0 fp32 method=clip align.item_share=0.5",
    "0 fp32 method=ctrl align.item_share=0.5",
    "1 fp32 method=rlmrec_con training.loss.kind=softmax",
    "3 fp32 method=rlmrec_gen model.backbone=ligr",
    f"1 fp32 {ALL_FROZEN} model.backbone=caser",
    f"0 fp32 {ALL_FROZEN} {FOUR} {SMOOTH} {LOG_MIX} disentangle.targets=valid text.transform=whiten",
    f"0 fp32 {LOG_MIX} {FOUR} disentangle.expert_loss=0.5 training.loss.kind=softmax",
]


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Losses]:
    """20 losses per world size, variant and stage."""
    folder = tmp_path_factory.mktemp("parity")
    dataset = write_tiny_dataset(folder / "dataset", random_sequences(45, 60, seed=1), 60)
    write_tiny_text(dataset, 12)
    settings = {
        "name": "parity",
        "out": str(folder / "out"),
        "dataset": dataset,
        "model": {"dim": 16, "max_length": 8, "dropout": 0.0, "positions": "end"},
        "training": {"batch_size": 8, "loss": {"negatives": 30}},
        # Small steps: what is compared is rounding, not how far training carries it.
        "align": {"sparse_lr": 0.02},
        "disentangle": {"expert_loss": 0.5, "sparse_lr": 0.02},
    }
    file = folder / "run.json"
    file.write_text(json.dumps(settings))
    every = [f"{zero} {precision}" for precision in ("fp32", "bf16") for zero in range(4)]
    return {
        world_size: launch(world_size, file, folder / f"{world_size}.json", [*variants, *OTHERS, *METHODS])
        for world_size, variants in ((1, ["0 fp32"]), (2, every))
    }


def launch(world_size: int, settings: Path, target: Path, variants: list[str]) -> Losses:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size)]
    command = [*torchrun, str(WORKER), str(settings), str(target), *variants]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    content: Losses = json.loads(target.read_text())
    return content


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("zero", ["0", "1", "2", "3"])
def test_two_ranks_under_any_zero_stage_take_the_steps_of_one(losses: dict[int, Losses], stage: str, zero: str) -> None:
    one = losses[1]["0 fp32"][stage]
    two = losses[2][f"{zero} fp32"][stage]
    assert len(one) == 20
    np.testing.assert_allclose(two, one, rtol=1e-5)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("zero", ["0", "1", "2", "3"])
def test_bf16_stays_near_fp32(losses: dict[int, Losses], stage: str, zero: str) -> None:
    two = losses[2]
    assert two[f"{zero} bf16"][stage] != two[f"{zero} fp32"][stage]
    np.testing.assert_allclose(two[f"{zero} bf16"][stage], two[f"{zero} fp32"][stage], rtol=0.03)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("variant", OTHERS)
def test_two_ranks_take_the_steps_of_one_with_other_losses_backbones_and_parts(
    losses: dict[int, Losses], stage: str, variant: str
) -> None:
    np.testing.assert_allclose(losses[2][variant][stage], losses[1][variant][stage], rtol=1e-5)


@pytest.mark.parametrize("variant", METHODS)
def test_two_ranks_take_the_steps_of_one_in_every_stage_of_every_method(
    losses: dict[int, Losses], variant: str
) -> None:
    one, two = losses[1][variant], losses[2][variant]
    assert list(one) == list(two)
    for stage in one:
        np.testing.assert_allclose(two[stage], one[stage], rtol=1e-5, err_msg=stage)
        if stage != "disentangle":  # of which the gate alone learns here
            assert np.mean(one[stage][-5:]) < 0.97 * np.mean(one[stage][:5]), stage


def test_methods_have_their_stages_and_share_what_is_the_same(losses: dict[int, Losses]) -> None:
    found = losses[1]
    stages = {variant.split()[2]: list(found[variant]) for variant in METHODS}
    assert stages.pop("disentangle.trained_text=true") == ["pretrain", "align", "pretrain_text", "disentangle"]
    assert stages.pop("disentangle.mix=log_probabilities") == ["pretrain", "align", "disentangle"]
    assert stages == {
        "method=id": ["pretrain"],
        "method=text": ["pretrain_text"],
        "method=whitenrec": ["pretrain_text"],
        "method=llm_init": ["pretrain"],
        "method=clip": ["pretrain", "align"],
        "method=ctrl": ["align", "pretrain"],
        "method=rlmrec_con": ["pretrain"],
        "method=rlmrec_gen": ["pretrain"],
    }
    pretrain = found["0 fp32"]["pretrain"]
    assert found[METHODS[0]]["pretrain"] == found[METHODS[4]]["pretrain"] == pretrain
    assert found[METHODS[5]]["pretrain"] != pretrain


@pytest.mark.parametrize("variant", ["0 fp32", *OTHERS])
def test_the_losses_are_those_of_training(losses: dict[int, Losses], variant: str) -> None:
    # Equal losses prove nothing if the weights never move.
    for stage in ("pretrain", "align"):
        curve = losses[1][variant][stage]
        assert np.mean(curve[-5:]) < 0.9 * np.mean(curve[:5])
