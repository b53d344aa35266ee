"""`pad-dist plan` as a user runs it."""

from pathlib import Path

from typer.testing import CliRunner

from pad_dist.capacity.report import placement
from pad_dist.cli.main import app
from pad_dist.sparse.placement import Block
from tests.support.stages import STAGES

CONFIG = str(Path(__file__).parents[2] / "configs" / "prime_pantry.yaml")


def test_a_plan_of_every_stage_is_printed_with_the_ranks_that_it_takes() -> None:
    size = ["--items", "1000000000", "--world-size", "8", "--device", "h200"]
    done = CliRunner().invoke(app, ["plan", "--config", CONFIG, *size, "model.dim=128"])
    assert done.exit_code == 0, done.output
    for stage in STAGES:
        assert f"{stage}: 1,000,000,000 items on 8 rank(s) of h200, 118 GiB each" in done.output
    rows = [[cell.strip() for cell in line.split("│")] for line in done.output.splitlines()]
    assert [row[2] for row in rows if row[1:2] == ["fits"]] == ["yes", "no", "yes", "no"]
    assert [row[2] for row in rows if row[1:2] == ["smallest number of ranks"]] == ["5", "12", "7", "15"]
    assert ["", "table id", "64,000,000,512", "cuda", ""] in rows
    assert "id: 125,000,001 x 128 on each of ranks 0-6 (fused)" in done.output


def test_an_unknown_device_is_refused_with_those_that_are_known() -> None:
    done = CliRunner().invoke(app, ["plan", "--config", CONFIG, "--items", "5", "--device", "h300"])
    assert done.exit_code == 2
    assert "no device h300: give one of cpu, a100-40, a100-80, h100" in done.stderr


def test_ranks_that_hold_as_much_stand_in_one_line() -> None:
    blocks = [Block("id", rank, 25 * rank, 25 if rank < 3 else 5, 0, 64) for rank in range(4)]
    assert placement(blocks) == ["id: 25 x 64 on each of ranks 0-2 (fused)", "id: 5 x 64 on rank 3 (fused)"]
