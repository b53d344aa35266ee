"""What stages a run has, and what each takes over."""

from __future__ import annotations

import pytest

from pad_dist.config import Config, MethodName
from pad_dist.stages.parts import METHODS, inherits, stages


@pytest.mark.parametrize("method", METHODS)
def test_an_expert_is_inherited_from_an_earlier_stage_that_has_it(method: MethodName) -> None:
    order = list(METHODS[method])
    for stage, made_of in METHODS[method].items():
        assert set(made_of.tables) == {"id", "aligned"}.intersection(made_of.experts)
        for source, there, here in made_of.inherits:
            assert order.index(source) < order.index(stage)
            assert there in METHODS[method][source].experts and here in made_of.experts


@pytest.mark.parametrize(
    ("experts", "trained_text", "expected"),
    [
        (["id", "aligned", "text"], False, ["pretrain", "align", "disentangle"]),
        (["id", "aligned", "text", "neighbours"], True, ["pretrain", "align", "pretrain_text", "disentangle"]),
        (["aligned", "text"], False, ["pretrain", "align", "disentangle"]),  # align starts from pretrain
        (["id", "text"], True, ["pretrain", "pretrain_text", "disentangle"]),
        (["id", "neighbours"], False, ["pretrain", "disentangle"]),
        (["text", "neighbours"], True, ["pretrain_text", "disentangle"]),
        (["text", "neighbours"], False, ["disentangle"]),
    ],
)
def test_no_stage_is_trained_that_no_expert_comes_from(
    experts: list[str], trained_text: bool, expected: list[str]
) -> None:
    disentangle = {"experts": experts, "trained_text": trained_text}
    config = Config.model_validate({"name": "x", "out": "x", "disentangle": disentangle})
    assert list(stages(config)) == expected
    assert {source for stage in expected for source, _, _ in inherits(config, stage)} == {*expected[:-1]}  # type: ignore[arg-type]
