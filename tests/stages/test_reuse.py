"""A stage that another run has trained: which one is taken, and that it comes whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pad_dist.checkpoint.files import FORMAT
from pad_dist.config.load import load_config
from pad_dist.errors import UserError
from pad_dist.stages import reuse
from pad_dist.stages.fingerprint import fingerprint, is_trained
from pad_dist.stages.reuse import finished_elsewhere, take_over
from pad_dist.stages.spec import StageSpec
from tests.support.stages import stage_of
from tests.support.tiny_dataset import random_sequences, write_tiny_dataset
from tests.support.tiny_text import write_tiny_text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    dataset = write_tiny_dataset(tmp_path / "dataset", random_sequences(20, 30, seed=1), 30)
    write_tiny_text(dataset, 4)
    (tmp_path / "run.yaml").write_text(f"name: tiny\ndataset: {dataset}\n")
    return tmp_path


def stage(folder: Path, out: str, *overrides: str, name: str = "pretrain") -> StageSpec:
    return stage_of(load_config(f"{folder}/run.yaml", list(overrides), f"{folder}/all/{out}"), name)


def trained(spec: StageSpec, root: str = "", checkpoint_format: int = FORMAT) -> None:
    """The stage as its end leaves it."""
    directory = Path(spec.directory)
    (directory / "step-000000003").mkdir(parents=True)
    (directory / "step-000000003" / "COMPLETE").write_text(json.dumps({"format": checkpoint_format, "best": 3}))
    for name in ("evaluation.json", "target_ranks.safetensors", "LOCK", "metrics.jsonl"):
        (directory / name).write_text("x")
    result = {"fingerprint": fingerprint(spec), "checkpoint_root": root}
    (directory / "result.json").write_text(json.dumps(result))


def test_the_very_stage_is_found_and_no_other(folder: Path) -> None:
    here, root = stage(folder, "a/seed-1"), f"{folder}/all"
    assert finished_elsewhere(here, root) is None
    trained(stage(folder, "b/seed-2", "seed=2"))
    trained(stage(folder, "c/seed-1"), root="memory://elsewhere")
    trained(stage(folder, "c/seed-2"), checkpoint_format=FORMAT - 1)
    trained(here)
    assert finished_elsewhere(here, root) is None
    twin = stage(folder, "d/seed-1", "align.gamma=0.5", "training.world_size=4")
    trained(twin)
    assert finished_elsewhere(here, root) == twin.config.out
    assert finished_elsewhere(stage(folder, "a/seed-1", name="align"), root) is None


def test_it_comes_whole_without_what_is_not_the_stage(folder: Path) -> None:
    source, here = stage(folder, "a/seed-1"), stage(folder, "b/seed-1")
    trained(source)
    old = Path(here.directory)
    old.mkdir(parents=True)
    (old / "old").write_text("x")
    take_over(here, source.config.out)
    assert is_trained(here)
    assert sorted(path.name for path in old.iterdir()) == ["metrics.jsonl", "result.json", "step-000000003"]
    assert json.loads((old / "result.json").read_text())["taken_from"] == source.config.out
    assert sorted(path.name for path in Path(here.config.out).iterdir()) == ["pretrain"]


def test_a_copy_that_was_cut_short_leaves_no_stage_and_is_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, here = stage(folder, "a/seed-1"), stage(folder, "b/seed-1")
    trained(source)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reuse.storage, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            take_over(here, source.config.out)
    assert not is_trained(here)
    assert finished_elsewhere(stage(folder, "c/seed-1"), f"{folder}/all") == source.config.out
    take_over(here, source.config.out)
    assert is_trained(here)


def test_checkpoints_elsewhere_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"leave checkpoint\.root out"):
        finished_elsewhere(stage(folder, "a", "checkpoint.root=memory://x"), f"{folder}/all")
