"""`pad-dist config`: what it prints, and how it fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pad_dist.cli.main import app
from pad_dist.config.reference import markdown

ROOT = Path(__file__).parents[2]
DEMO = str(ROOT / "configs/demo.yaml")


def config(*arguments: str) -> tuple[int, list[str]]:
    """Exit status, and the words of each line that is printed."""
    done = CliRunner().invoke(app, ["config", *arguments])
    return done.exit_code, [" ".join(line.replace("│", " ").split()) for line in done.output.splitlines()]


def test_keys_lists_a_section_in_tables() -> None:
    status, lines = config("keys", "training")
    assert status == 0
    assert "training: Settings that all stages share." in lines
    assert any(line.startswith("training.batch_size integer, at least 1 128 Number of sequences") for line in lines)
    assert any(line.startswith("training.loss.t gbce number, at least 0 and at most 1 0.75") for line in lines)
    assert not any(line.startswith("model.") for line in lines)


def test_keys_lists_everything_and_writes_the_document() -> None:
    status, lines = config("keys")
    assert status == 0 and all(any(line.startswith(key) for line in lines) for key in ("seed ", "evaluation.every "))
    done = CliRunner().invoke(app, ["config", "keys", "--markdown"])
    assert (done.exit_code, done.output) == (0, markdown())


def test_show_prints_values_and_origins() -> None:
    status, lines = config("show", "--config", DEMO, "--out", "o", "model.dim=32")
    assert status == 0
    assert "model.dim 32 override model.dim" in lines
    assert "out o option --out" in lines
    assert "training.precision fp32 default" in lines
    assert any(line.startswith("training.batch_size 32 ") and "default" not in line for line in lines)


def test_show_changed_leaves_the_defaults_out() -> None:
    status, lines = config("show", "--config", DEMO, "--changed", "method=clip")
    assert status == 0
    assert "align.alignment.kind infonce method clip" in lines
    assert not any(line.startswith("training.precision") or line.endswith(" default") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["keys", "traning"], "unknown section traning; did you mean training?"),
        (["keys", "training", "--markdown"], "--markdown writes the whole reference: leave training out"),
        (["show", "--config", "no.yaml"], "config file no.yaml does not exist"),
        (
            ["show", "--config", DEMO, "model.dmi=3"],
            "override model.dmi=3: unknown key model.dmi; did you mean model.dim?",
        ),
        (["show", "--config", DEMO, "model.dim"], "override 'model.dim' is not of the form section.key=value"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(arguments: list[str], told: str) -> None:
    assert config(*arguments) == (2, [f"pad-dist: error: {told}"])


@pytest.mark.parametrize("arguments", [["keys"], ["show", "--config", DEMO]])
def test_no_engine_is_loaded(arguments: list[str]) -> None:
    code = (
        "import sys; from pad_dist.cli.main import app; app(sys.argv[1:], standalone_mode=False); "
        "assert not {'torch', 'pyspark', 'deepspeed'} & {*sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", code, "config", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
