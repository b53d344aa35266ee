"""Which earlier run may be continued, and what is said when another version was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pad_dist import storage
from pad_dist.config import Config, StageName
from pad_dist.config_file import load_config
from pad_dist.data import versions
from pad_dist.data.dataset import Dataset
from pad_dist.errors import UserError
from pad_dist.stages.fingerprint import check_ready, fingerprint, made_from
from pad_dist.stages.parts import inherits
from pad_dist.stages.trained_on import record
from pad_dist.training.checkpoint import FORMAT
from tests.support.stages import STAGES
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
        leave_trained(config(root, f"out={tmp_path}/old"), stage)
    publish_tiny(root, random_sequences(33, 44, seed=1), NEW_MAP)
    write_tiny_text(root, 8)
    return root


def config(root: str, *overrides: str) -> Config:
    return load_config(f"{Path(root).parent}/run.yaml", list(overrides))


def continued(root: str, *overrides: str) -> Config:
    return config(root, f"continue_from={Path(root).parent}/old", *overrides)


def leave_trained(config: Config, stage: StageName, **changed: Any) -> None:
    """What a trained stage leaves, but for its weights."""
    meta = {"fingerprint": fingerprint(config, stage), "dataset": record(Dataset.open(config.dataset))}
    meta |= {"made_from": made_from(config, stage), "format": FORMAT, "checkpoint_root": ""}
    meta |= {"config": config.model_dump(mode="json"), "best": 1} | changed
    storage.write_json(f"{config.out}/{stage}/step-000000001/COMPLETE", meta)
    storage.write_json(f"{config.out}/{stage}/result.json", meta)


def refusal(config: Config, stage: StageName) -> str:
    with pytest.raises(UserError) as refused:
        check_ready(config, stage, "run.yaml")
    message = str(refused.value)
    assert "\n" not in message
    return message


def test_any_stage_of_a_grown_dataset_may_continue_without_the_one_before(root: str) -> None:
    for stage in STAGES:
        check_ready(continued(root), stage, "run.yaml")
        check_ready(continued(root, f"dataset={root}/versions/{versions.published(root)[0]}"), stage, "run.yaml")


def test_what_is_frozen_comes_from_this_runs_own_stages(root: str) -> None:
    frozen = continued(root, "disentangle.freeze=[id]")
    assert inherits(frozen, "disentangle") == (("pretrain", "id", "id"),)
    assert "needs a trained pretrain stage" in refusal(frozen, "disentangle")
    assert inherits(continued(root), "disentangle") == inherits(continued(root), "align") == ()


@pytest.mark.parametrize("item_map", [[[40, "c" * 64]], [[39, "a" * 64]], [[40, "a" * 64], [45, "d" * 64]]])
def test_an_item_map_that_the_dataset_did_not_grow_from_is_refused_naming_both(
    root: str, item_map: list[list[Any]]
) -> None:
    here = continued(root)
    old = {"version": "000009-0123abcd", "content_hash": "f" * 64, "item_map": item_map}
    leave_trained(config(root, f"out={here.continue_from}"), "pretrain", dataset=old)
    message = refusal(here, "pretrain")
    items, digest = item_map[-1]
    assert f"{items} items ({digest[:12]}) of version 000009-0123abcd (content ffffffffffff)" in message
    assert f"version {versions.current(root)} (content " in message and "44 items (bbbbbbbbbbbb)" in message


def test_another_model_is_refused_naming_the_setting(root: str) -> None:
    assert "set model.dim=128, or name another run" in refusal(continued(root, "model.dim=64"), "pretrain")
    check_ready(continued(root, "model.dropout=0.5"), "pretrain", "run.yaml")
    other = ["text.pooling=last"]
    check_ready(continued(root, f"dataset={root}/versions/{versions.published(root)[0]}", *other), "pretrain", "c.yaml")
    assert "text.pooling=mean, this run has last" in refusal(continued(root, *other), "align")
    ungated = continued(root, "disentangle.gate=none")
    assert "set disentangle.gate=frequency, or" in refusal(ungated, "disentangle")
    check_ready(ungated, "align", "run.yaml")


def test_hashed_tables_are_continued_by_like_ones_and_place_no_new_items_by_text(root: str) -> None:
    hashed = ["sparse.hashed.rows=16384", f"out={Path(root).parent}/old"]
    leave_trained(config(root, *hashed, f"dataset={root}/versions/{versions.published(root)[0]}"), "pretrain")
    message = refusal(continued(root), "pretrain")
    assert "was trained with sparse.hashed={" in message and "this run has None" in message
    storage.remove(f"{root}/versions/{versions.current(root)}/text")
    check_ready(continued(root, hashed[0]), "pretrain", "run.yaml")


def test_another_method_of_the_stage_is_not_continued(root: str) -> None:
    message = refusal(continued(root, "method=rlmrec_con"), "pretrain")
    assert "was trained with method=pad, this run has method=rlmrec_con, whose pretrain stage is another" in message
    check_ready(continued(root, "method=id"), "pretrain", "run.yaml")
    check_ready(continued(root, "method=llm_init"), "pretrain", "run.yaml")


def test_a_run_without_the_stage_is_refused(root: str) -> None:
    storage.remove(f"{Path(root).parent}/old/align/result.json")
    assert "old has no align stage that was trained to its end" in refusal(continued(root), "align")
    storage.write_json(f"{Path(root).parent}/old/align/result.json", {"checkpoint_root": ""})
    storage.remove(f"{Path(root).parent}/old/align/step-000000001")
    assert "holds no complete checkpoint" in refusal(continued(root), "align")


def test_a_run_does_not_continue_itself(root: str) -> None:
    with pytest.raises(UserError, match=r"continue_from=\S+/new is where this run writes: give it another --out"):
        config(root, f"continue_from={Path(root).parent}/new")


def test_new_items_need_text_vectors_even_in_the_id_model(root: str) -> None:
    storage.remove(f"{root}/versions/{versions.current(root)}/text")
    assert "embed_items --config CONFIG` first" in refusal(continued(root), "pretrain")
    check_ready(continued(root, f"dataset={root}/versions/{versions.published(root)[0]}"), "pretrain", "run.yaml")


def test_what_is_continued_is_part_of_the_fingerprint(root: str) -> None:
    here, first = continued(root), versions.published(root)[0]
    marks = {fingerprint(config(root), "pretrain"), fingerprint(here, "pretrain")}
    old = config(root, f"out={here.continue_from}", f"dataset={root}/versions/{first}")
    leave_trained(old, "pretrain", fingerprint="other")
    marks.add(fingerprint(here, "pretrain"))
    assert len(marks) == 3


def test_a_stage_of_another_version_is_refused_naming_both_and_the_ways_out(root: str) -> None:
    old, new = versions.published(root)
    out = f"{Path(root).parent}/old"
    message = refusal(config(root, f"out={out}"), "align")
    assert message.startswith(f"{out}/pretrain was trained on version {old} (content ")
    assert f"this run reads version {new} (content " in message
    assert f"set dataset={root}/versions/{old}" in message
    assert "run `deepspeed launchers/pretrain.py --config run.yaml`" in message
    assert f"continue_from={out} --out NEW" in message
    check_ready(config(root, f"out={out}", f"dataset={root}/versions/{old}"), "align", "run.yaml")
    versions.retire(root, [old])
    assert "set dataset=" not in refusal(config(root, f"out={out}"), "align")
