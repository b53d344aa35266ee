"""The same global batches on 1 and 2 ranks under every ZeRO stage give the same losses."""

import numpy as np
import pytest

from tests.support.parity import METHODS, OTHERS, Losses, launch, write_settings
from tests.support.stages import STAGES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Losses]:
    """20 losses per world size, variant and stage."""
    folder = tmp_path_factory.mktemp("parity")
    file = write_settings(folder)
    every = [f"{zero} {precision}" for precision in ("fp32", "bf16") for zero in range(4)]
    return {
        world_size: launch(world_size, file, folder / f"{world_size}.json", [*variants, *OTHERS, *METHODS])
        for world_size, variants in ((1, ["0 fp32"]), (2, every))
    }


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
def test_two_ranks_take_the_steps_of_one_with_other_losses_backbones_and_experts(
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
    one = losses[1]
    stages = {variant.split()[2]: list(one[variant]) for variant in METHODS}
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
    pretrain = one["0 fp32"]["pretrain"]
    assert one[METHODS[0]]["pretrain"] == one[METHODS[4]]["pretrain"] == pretrain
    assert one[METHODS[5]]["pretrain"] != pretrain


@pytest.mark.parametrize("variant", ["0 fp32", *OTHERS])
def test_the_losses_are_those_of_training(losses: dict[int, Losses], variant: str) -> None:
    # Equal losses prove nothing if the weights never move.
    for stage in ("pretrain", "align"):
        curve = losses[1][variant][stage]
        assert np.mean(curve[-5:]) < 0.9 * np.mean(curve[:5])
