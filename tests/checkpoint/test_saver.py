"""A save in the background writes the state at the save, and a save that fails harms no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from pad_dist.checkpoint.files import complete_steps, damaged, place
from tests.checkpoint import saver_worker as worker
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.slow

SHARDED = [
    {"sharding": "row_wise", "optimizer": "rowwise_adagrad"},
    {"sharding": "column_wise", "optimizer": "adagrad"},
    {"sharding": "table_wise", "optimizer": "sgd"},
    {"sharding": "grid", "optimizer": "adagrad", "precision": "fp16"},
]
ALONE = [
    *SHARDED,
    {"backend": "torch", "optimizer": "rowwise_adagrad"},
    {"backend": "torch", "optimizer": "adamw"},  # each step changes every row
]


@pytest.mark.parametrize(("world_size", "variants"), [(1, ALONE), (2, SHARDED)])
def test_what_is_saved_in_the_background_equals_what_is_saved_while_training_waits(
    tmp_path: Path, world_size: int, variants: list[dict[str, str]]
) -> None:
    for during in run_ranks(worker.both_ways, world_size, str(tmp_path), variants):
        assert min(during) > 3, "no training fell into the saves"
    for number, variant in enumerate(variants):
        files = sorted((tmp_path / f"{number}" / "waiting" / "step-000000003").glob("*.safetensors"))
        assert len(files) == 2 + world_size
        for file in files:
            other = tmp_path / f"{number}" / "background" / file.parent.name / file.name
            assert file.read_bytes() == other.read_bytes(), (variant, file.name)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_without_space_ends_the_run_or_the_save_alone(tmp_path: Path, rank: int) -> None:
    for on_rank in run_ranks(worker.fails, 2, str(tmp_path), rank):
        continued, stopped = on_rank["said"]
        for said, step in (
            (continued, f"{tmp_path}/continue/step-000000002"),
            (stopped, f"{tmp_path}/stop/step-000000002"),
        ):
            assert said.startswith(f"{step} could not be written, older checkpoints are whole: rank {rank}: OSError: ")
            assert "\n" not in said
        assert continued.endswith("; training goes on") and "checkpoint.on_error=continue" in stopped
    for name, step in (("continue", 3), ("stop", 1)):
        directory = f"{tmp_path}/{name}"
        assert complete_steps(directory) == [step]
        assert sorted(path.name for path in Path(directory).iterdir()) == [f"step-{step:09d}"]
        assert damaged(place(directory, step)) == []
