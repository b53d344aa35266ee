"""What stages a run has, and what each inherits."""

from __future__ import annotations

import pytest

from pad_dist.config import Config, MethodName
from pad_dist.stages.methods import METHODS, resolve_stages


@pytest.mark.parametrize("method", METHODS)
def test_an_expert_is_inherited_from_an_earlier_stage_that_has_it(method: MethodName) -> None:
    order = list(METHODS[method])
    for stage, recipe in METHODS[method].items():
        for before, source, expert in recipe.inherits:
            assert order.index(before) < order.index(stage)
            assert source in METHODS[method][before].experts and expert in recipe.experts


@pytest.mark.parametrize("method", METHODS)
def test_a_stage_has_tables_of_the_experts_that_have_one_alone(method: MethodName) -> None:
    for spec in resolve_stages(Config.model_validate({"name": "x", "out": "x", "method": method})):
        assert set(spec.tables) == {"id", "aligned"}.intersection(spec.experts)


@pytest.mark.parametrize(
    ("experts", "trained_text", "expected"),
    [
        (["id", "aligned", "text"], False, ["pretrain", "align", "disentangle"]),
        (["id", "aligned", "text", "item_knn"], True, ["pretrain", "align", "pretrain_text", "disentangle"]),
        (["aligned", "text"], False, ["pretrain", "align", "disentangle"]),  # align starts from pretrain
        (["id", "text"], True, ["pretrain", "pretrain_text", "disentangle"]),
        (["id", "item_knn"], False, ["pretrain", "disentangle"]),
        (["text", "item_knn"], True, ["pretrain_text", "disentangle"]),
        (["text", "item_knn"], False, ["disentangle"]),
    ],
)
def test_no_stage_is_trained_that_no_expert_comes_from(
    experts: list[str], trained_text: bool, expected: list[str]
) -> None:
    disentangle = {"experts": experts, "trained_text": trained_text}
    config = Config.model_validate({"name": "x", "out": "x", "disentangle": disentangle})
    stages = resolve_stages(config)
    assert [spec.name for spec in stages] == expected
    assert {one.stage.name for spec in stages for one in spec.inherits} == {*expected[:-1]}
