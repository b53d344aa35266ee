"""The settings that determine a stage's result: all of its sections but what says where and how it runs."""

from __future__ import annotations

from typing import Any

import pytest

from pad_dist.config import EXPERTS, Config, MethodName, Section
from pad_dist.config.keys import walk
from pad_dist.stages.methods import METHODS, resolve_stages
from pad_dist.stages.spec import StageSpec

ELSEWHERE = {"name", "out", "method", "dataset", "data", "text", "warm_start", "checkpoint"}
"""Keys of a config that no stage has: names and places; the others enter by what a stage is made of and from."""


def stages(method: MethodName) -> tuple[StageSpec, ...]:
    """With every section that a config may have."""
    values = {
        "method": method,
        "sparse": {"hashed": {"rows": 1 << 14}} if method != "llm_init" else {},
        "disentangle": {"experts": list(EXPERTS), "trained_text": True},
    }
    return resolve_stages(Config.model_validate({"name": "x", "out": "x", **values}))


def assert_whole(section: Section, settings: dict[str, Any], left_out: frozenset[str] = frozenset()) -> None:
    """All keys are there, in each section below too, but for execution keys and what is `left_out`."""
    assert settings.keys() == set(type(section).model_fields) - section.execution_keys - left_out, type(section)
    for name, value in settings.items():
        if isinstance(getattr(section, name), Section):
            assert_whole(getattr(section, name), value)


@pytest.mark.parametrize("method", METHODS)
def test_execution_keys_are_left_out_and_every_other_key_of_its_sections_is_there(method: MethodName) -> None:
    for spec in stages(method):
        settings = spec.result_settings()
        own = {spec.name, spec.auxiliary_name} - {None}
        assert settings.keys() == {"seed", "model", "sparse", "training", "evaluation", "stage", *own}
        for name in {"sparse", "training", "evaluation", *own}:
            assert_whole(getattr(spec.config, name), settings[name])
        read_by_experts = frozenset.union(*(facts.model_keys for facts in EXPERTS.values()))
        read = frozenset.union(*(EXPERTS[name].model_keys for name in spec.experts))
        assert_whole(spec.model_config, settings["model"], left_out=read_by_experts - read)


def test_no_key_of_a_config_is_in_no_stage() -> None:
    every = [spec.result_settings() for method in METHODS for spec in stages(method)]
    assert set().union(*every) == set(Config.model_fields) - ELSEWHERE | {"stage"}
    model = Config.model_fields["model"].annotation
    assert set().union(*(settings["model"] for settings in every)) == set(model.model_fields)  # type: ignore[union-attr]


def test_execution_keys_are_keys() -> None:
    owners = {key.owner for key in walk(Config)}
    assert {key for owner in owners for key in getattr(owner, "execution_keys", ())} >= {"world_size", "backend"}
    for owner in owners:
        assert getattr(owner, "execution_keys", frozenset()) <= set(owner.model_fields), owner
