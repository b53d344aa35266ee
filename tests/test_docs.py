"""The documents name only what exists: commands, options, files, links, config keys, functions."""

from pathlib import Path

import pytest

from tests.support.documents import DOCUMENTS, ROOT, problems


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_document_names_only_what_is_there(document: Path) -> None:
    assert problems(document.read_text(), document.parent) == []


def test_every_room_has_its_line_in_the_house_and_every_script_its_command() -> None:
    house = (ROOT / "docs/architecture.md").read_text()
    rooms = [file.parent.name for file in (ROOT / "pad_dist").glob("*/__init__.py")]
    readme = (ROOT / "README.md").read_text()
    scripts = [f"launchers/{file.name}" for file in ROOT.glob("launchers/[a-z]*.py")]
    assert rooms and scripts
    missing = [room for room in rooms if f"\n  {room}/ " not in house]
    assert missing + [script for script in scripts if script not in readme] == []


YAML = "```yaml\n# my.yaml\nname: my\nmodel: {dim: 32}\n```\n"


@pytest.mark.parametrize(
    "mistake",
    [
        "make everything",
        "pad-dist ruin --config configs/demo.yaml",
        "pad-dist run --confg configs/demo.yaml",
        "pad-dist run --config configs/nowhere.yaml",
        "pad-dist run --config configs/demo.yaml model.dmi=4",
        "pad-dist run --config configs/demo.yaml model.dim=four",
        "pad-dist run --config my.yaml model.backbone.heads=3",
        "pad-dist doctor --fix",
        "pad-dist compare --config configs/demo.yaml",
        "pad-dist tune --config configs/demo.yaml --space configs/demo.yaml --trials 2 --out DIR",
        "pad-dist data",
        "pad-dist data lst DIR",
        "pad-dist data gc DIR",
        "pad-dist data gc DIR --keep few",
        "pad-dist data diff DIR 1",
        "pip install -r requirements/tpu.txt",
        "spark-submit spark_jobs/build_sequence.py --config configs/demo.yaml",
        "spark-submit spark_jobs/build_sequences.py --config configs/demo.yaml --target DIR",
        "deepspeed --gpus 2 launchers/pretrain.py --config configs/demo.yaml",
        "deepspeed launchers/pretain.py --config configs/demo.yaml",
        "deepspeed launchers/pretrain.py --config configs/demo.yaml training.zero_stage=4",
        "torchrun --ranks 2 launchers/pretrain.py --config configs/demo.yaml",
        "python -m pytest tests/test_doc.py",
        "python -m pad_dist.data.synthetics --out DIR",
        "python -m pad_dist.dataset.synthetic --outt DIR",
        "pad-distt run",
    ],
)
def test_a_wrong_command_is_noticed(mistake: str) -> None:
    assert len(problems(f"{YAML}```bash\n{mistake}\n```\n", ROOT)) == 1


@pytest.mark.parametrize(
    "mistake",
    [
        "see [the book](docs/book.md)",
        "see [below](#nowhere)",
        "see [a cluster](README.md#a-clutter)",
        "`pad_dist/modle/gate.py`",
        "`doc/architecture.md`",
        "`pad_dist.data.orders`",
        "`rank_slices()`",
        "`text.bidirection`",
        "`trainings.batch_size`",
        "`text.pooling=max`",
        "`model.backbone.layer`",
        "`model.backbone.kind=bert`",
        "`model.backbone.layers=0`",
        "`align.alignment=infonce`",
        "`make everything`",
        "`pad-dist ruin`",
        "`pad-dist data lst`",
        "```text\nstages/stage_runtimes.py\n```",
        "```yaml\n# my.yaml\nname: my\nmodel: {dmi: 32}\n```",
    ],
)
def test_a_wrong_name_is_noticed(mistake: str) -> None:
    assert len(problems(f"{mistake}\n", ROOT)) == 1


def test_a_right_document_has_no_problems() -> None:
    commands = [
        "pad-dist run --config my.yaml model.backbone.heads=4",
        "pad-dist data gc DIR --keep 1 --dry-run",
        "make demo",
        "deepspeed launchers/align.py --config my.yaml",
        "python -m pytest tests/test_docs.py",
    ]
    fence = "```bash\n" + "\n".join(commands) + "\n```\n"
    prose = "See `model.dim=8`, `DIR/report.json`, `pad-dist data list`.\n"
    kinds = "Set `model.backbone.kind=gru4rec`, `model.backbone.layers=2` and `align.alignment.temperature=0.1`.\n"
    assert problems(f"{YAML}{fence}{prose}{kinds}", ROOT) == []
