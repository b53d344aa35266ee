"""A stage that another run has trained: which one is taken, and that it comes whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pad_dist.config import Config
from pad_dist.config_file import load_config
from pad_dist.errors import UserError
from pad_dist.stages import reuse
from pad_dist.stages.fingerprint import fingerprint, is_trained
from pad_dist.stages.reuse import finished_elsewhere, take_over
from pad_dist.training.checkpoint import FORMAT
from tests.support.tiny_dataset import random_sequences, write_tiny_dataset
from tests.support.tiny_text import write_tiny_text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    dataset = write_tiny_dataset(tmp_path / "dataset", random_sequences(20, 30, seed=1), 30)
    write_tiny_text(dataset, 4)
    (tmp_path / "run.yaml").write_text(f"name: tiny\ndataset: {dataset}\n")
    return tmp_path


def config(folder: Path, out: str, *overrides: str) -> Config:
    return load_config(f"{folder}/run.yaml", list(overrides), f"{folder}/all/{out}")


def trained(settings: Config, root: str = "", checkpoint_format: int = FORMAT) -> Path:
    """A pretrain stage as its end leaves it."""
    stage = Path(settings.out, "pretrain")
    (stage / "step-000000003").mkdir(parents=True)
    (stage / "step-000000003" / "COMPLETE").write_text(json.dumps({"format": checkpoint_format, "best": 3}))
    for name in ("evaluation.json", "ranks.safetensors", "LOCK", "metrics.jsonl"):
        (stage / name).write_text("x")
    result = {"fingerprint": fingerprint(settings, "pretrain"), "checkpoint_root": root}
    (stage / "result.json").write_text(json.dumps(result))
    return stage


def test_the_very_stage_is_found_and_no_other(folder: Path) -> None:
    here, root = config(folder, "a/seed-1"), f"{folder}/all"
    assert finished_elsewhere(here, "pretrain", root) is None
    trained(config(folder, "b/seed-2", "seed=2"))
    trained(config(folder, "c/seed-1"), root="memory://elsewhere")
    trained(config(folder, "c/seed-2"), checkpoint_format=FORMAT - 1)
    trained(here)
    assert finished_elsewhere(here, "pretrain", root) is None
    twin = config(folder, "d/seed-1", "align.gamma=0.5", "training.world_size=4")
    trained(twin)
    assert finished_elsewhere(here, "pretrain", root) == twin.out
    assert finished_elsewhere(here, "align", root) is None


def test_it_comes_whole_without_what_is_not_the_stage(folder: Path) -> None:
    source, here = config(folder, "a/seed-1"), config(folder, "b/seed-1")
    trained(source)
    old = Path(here.out, "pretrain")
    old.mkdir(parents=True)
    (old / "old").write_text("x")
    take_over(here, "pretrain", source.out)
    assert is_trained(here, "pretrain")
    assert sorted(path.name for path in old.iterdir()) == ["metrics.jsonl", "result.json", "step-000000003"]
    assert json.loads((old / "result.json").read_text())["taken_from"] == source.out
    assert sorted(path.name for path in Path(here.out).iterdir()) == ["pretrain"]


def test_a_copy_that_was_cut_short_leaves_no_stage_and_is_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, here = config(folder, "a/seed-1"), config(folder, "b/seed-1")
    trained(source)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reuse.storage, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            take_over(here, "pretrain", source.out)
    assert not is_trained(here, "pretrain")
    assert finished_elsewhere(config(folder, "c/seed-1"), "pretrain", f"{folder}/all") == source.out
    take_over(here, "pretrain", source.out)
    assert is_trained(here, "pretrain")


def test_checkpoints_elsewhere_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"leave checkpoint\.root out"):
        finished_elsewhere(config(folder, "a", "checkpoint.root=memory://x"), "pretrain", f"{folder}/all")
