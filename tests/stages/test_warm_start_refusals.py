"""Which run a stage may start from, and what is said when another version was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pad_dist import storage
from pad_dist.checkpoint.files import FORMAT
from pad_dist.config import Config
from pad_dist.config.load import load_config
from pad_dist.dataset import versions
from pad_dist.dataset.reader import Dataset
from pad_dist.errors import UserError
from pad_dist.stages.fingerprint import check_ready, fingerprint, made_from
from pad_dist.stages.spec import StageSpec
from pad_dist.stages.trained_on import record
from tests.support.stages import STAGES, stage_of
from tests.support.tiny_dataset import random_sequences
from tests.support.tiny_text import write_tiny_text
from tests.support.tiny_versions import publish_tiny

OLD_MAP, NEW_MAP = [[40, "a" * 64]], [[40, "a" * 64], [44, "b" * 64]]


@pytest.fixture
def root(tmp_path: Path) -> str:
    """A dataset of two versions, the second grown by four items; both with texts. Beside it a config and run `old`."""
    root = f"{tmp_path}/dataset"
    (tmp_path / "run.yaml").write_text(f"name: tiny\nout: {tmp_path}/new\ndataset: {root}\n")
    publish_tiny(root, random_sequences(30, 40, seed=1), OLD_MAP)
    write_tiny_text(root, 8)
    for stage in STAGES:
        leave_trained(stage_of(config(root, f"out={tmp_path}/old"), stage))
    publish_tiny(root, random_sequences(33, 44, seed=1), NEW_MAP)
    write_tiny_text(root, 8)
    return root


def config(root: str, *overrides: str) -> Config:
    return load_config(f"{Path(root).parent}/run.yaml", list(overrides))


def warm(root: str, stage: str, *overrides: str) -> StageSpec:
    """A stage that starts from the run `old`."""
    return stage_of(config(root, f"warm_start={Path(root).parent}/old", *overrides), stage)


def leave_trained(spec: StageSpec, **changed: Any) -> None:
    """What a trained stage leaves, but for its weights."""
    meta = {"fingerprint": fingerprint(spec), "dataset": record(Dataset.open(spec.config.dataset))}
    meta |= {"made_from": made_from(spec), "format": FORMAT, "checkpoint_root": ""}
    meta |= {"config": spec.config.model_dump(mode="json"), "best": 1} | changed
    storage.write_json(f"{spec.directory}/step-000000001/COMPLETE", meta)
    storage.write_json(spec.result_url, meta)


def refusal(spec: StageSpec) -> str:
    with pytest.raises(UserError) as refused:
        check_ready(spec, "run.yaml")
    message = str(refused.value)
    assert "\n" not in message
    return message


def test_any_stage_of_a_grown_dataset_may_start_warm_without_the_one_before(root: str) -> None:
    for stage in STAGES:
        check_ready(warm(root, stage), "run.yaml")
        check_ready(warm(root, stage, f"dataset={root}/versions/{versions.published(root)[0]}"), "run.yaml")


def test_what_is_frozen_comes_from_this_runs_own_stages(root: str) -> None:
    frozen = warm(root, "disentangle", "disentangle.freeze=[id]")
    assert [(one.stage.name, one.source, one.expert) for one in frozen.inherits] == [("pretrain", "id", "id")]
    assert "needs a trained pretrain stage" in refusal(frozen)
    assert warm(root, "disentangle").inherits == warm(root, "align").inherits == ()


@pytest.mark.parametrize("item_map", [[[40, "c" * 64]], [[39, "a" * 64]], [[40, "a" * 64], [45, "d" * 64]]])
def test_an_item_map_that_the_dataset_did_not_grow_from_is_refused_naming_both(
    root: str, item_map: list[list[Any]]
) -> None:
    here = warm(root, "pretrain")
    old = {"version": "000009-0123abcd", "content_hash": "f" * 64, "item_map": item_map}
    leave_trained(stage_of(config(root, f"out={here.config.warm_start}"), "pretrain"), dataset=old)
    message = refusal(here)
    items, digest = item_map[-1]
    assert f"{items} items ({digest[:12]}) of version 000009-0123abcd (content ffffffffffff)" in message
    assert f"version {versions.current(root)} (content " in message and "44 items (bbbbbbbbbbbb)" in message


def test_another_model_is_refused_naming_the_setting(root: str) -> None:
    assert "set model.dim=128, or name another run" in refusal(warm(root, "pretrain", "model.dim=64"))
    check_ready(warm(root, "pretrain", "model.dropout=0.5"), "run.yaml")
    other = ["text.pooling=last"]
    check_ready(warm(root, "pretrain", f"dataset={root}/versions/{versions.published(root)[0]}", *other), "c.yaml")
    assert "text.pooling=mean, this run has last" in refusal(warm(root, "align", *other))
    assert "set disentangle.gate=frequency, or" in refusal(warm(root, "disentangle", "disentangle.gate=none"))
    check_ready(warm(root, "align", "disentangle.gate=none"), "run.yaml")


def test_a_section_that_came_after_the_earlier_run_is_no_difference(root: str) -> None:
    here, first = warm(root, "pretrain"), versions.published(root)[0]
    old = stage_of(config(root, f"out={here.config.warm_start}", f"dataset={root}/versions/{first}"), "pretrain")
    before = old.config.model_dump(mode="json")
    del before["model"]["aligned"]
    leave_trained(old, config=before)
    check_ready(here, "run.yaml")
    assert "set model.dim=128, or" in refusal(warm(root, "pretrain", "model.dim=64"))


def test_hashed_tables_start_from_like_ones_and_place_no_new_items_by_text(root: str) -> None:
    hashed = ["sparse.hashed.rows=16384", f"out={Path(root).parent}/old"]
    first = f"dataset={root}/versions/{versions.published(root)[0]}"
    leave_trained(stage_of(config(root, *hashed, first), "pretrain"))
    message = refusal(warm(root, "pretrain"))
    assert "was trained with sparse.hashed={" in message and "this run has None" in message
    storage.remove(f"{root}/versions/{versions.current(root)}/text")
    check_ready(warm(root, "pretrain", hashed[0]), "run.yaml")


def test_a_stage_of_another_method_is_no_warm_start(root: str) -> None:
    message = refusal(warm(root, "pretrain", "method=rlmrec_con"))
    assert "was trained with method=pad, this run has method=rlmrec_con, whose pretrain stage is another" in message
    check_ready(warm(root, "pretrain", "method=id"), "run.yaml")
    check_ready(warm(root, "pretrain", "method=llm_init"), "run.yaml")
    first = f"dataset={root}/versions/{versions.published(root)[0]}"
    leave_trained(stage_of(config(root, f"out={Path(root).parent}/old", first, "method=ctrl"), "align"))
    assert "was trained with method=ctrl, this run has method=pad, whose align" in refusal(warm(root, "align"))


def test_a_run_without_the_stage_is_refused(root: str) -> None:
    storage.remove(f"{Path(root).parent}/old/align/result.json")
    assert "old has no align stage that was trained to its end" in refusal(warm(root, "align"))
    storage.write_json(f"{Path(root).parent}/old/align/result.json", {"checkpoint_root": ""})
    storage.remove(f"{Path(root).parent}/old/align/step-000000001")
    assert "holds no complete checkpoint" in refusal(warm(root, "align"))


def test_a_run_does_not_start_from_itself(root: str) -> None:
    with pytest.raises(UserError, match=r"warm_start=\S+/new is where this run writes: give it another --out"):
        config(root, f"warm_start={Path(root).parent}/new")


def test_new_items_need_text_vectors_even_in_the_id_model(root: str) -> None:
    storage.remove(f"{root}/versions/{versions.current(root)}/text")
    assert "embed_items --config CONFIG` first" in refusal(warm(root, "pretrain"))
    check_ready(warm(root, "pretrain", f"dataset={root}/versions/{versions.published(root)[0]}"), "run.yaml")


def test_the_warm_start_is_part_of_the_fingerprint(root: str) -> None:
    here, first = warm(root, "pretrain"), versions.published(root)[0]
    fingerprints = {fingerprint(stage_of(config(root), "pretrain")), fingerprint(here)}
    old = config(root, f"out={here.config.warm_start}", f"dataset={root}/versions/{first}")
    leave_trained(stage_of(old, "pretrain"), fingerprint="other")
    fingerprints.add(fingerprint(here))
    assert len(fingerprints) == 3


def test_a_stage_of_another_version_is_refused_naming_both_and_the_ways_out(root: str) -> None:
    old, new = versions.published(root)
    out = f"{Path(root).parent}/old"
    message = refusal(stage_of(config(root, f"out={out}"), "align"))
    assert message.startswith(f"{out}/pretrain was trained on version {old} (content ")
    assert f"this run reads version {new} (content " in message
    assert f"set dataset={root}/versions/{old}" in message
    assert "run `deepspeed launchers/pretrain.py --config run.yaml`" in message
    assert f"warm_start={out} --out NEW" in message
    check_ready(stage_of(config(root, f"out={out}", f"dataset={root}/versions/{old}"), "align"), "run.yaml")
    versions.retire(root, [old])
    assert "set dataset=" not in refusal(stage_of(config(root, f"out={out}"), "align"))
