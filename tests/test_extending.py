"""docs/extending.md does what it says: its files and diffs are applied to a copy of the repository, which then trains.

A section of the document that has a sentence "It touches N files." is a walk-through. Its machine-readable pieces:

* a line "New file PATH:" and a `python` fence: the whole file;
* a `diff` fence: a change, applied by `git apply`;
* a `text` fence: the overrides that use what was added, one a line.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pad_dist.config.load import load_config
from pad_dist.stages.fingerprint import fingerprint
from pad_dist.stages.methods import resolve_stages
from tests.support.parity import write_settings

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
NEW = {
    "backbone": ("mean_pool", "pretrain"),
    "loss": ("bpr", "pretrain"),
    "expert": ("last_item", "disentangle"),
    "alignment": ("mean_squared", "align"),
    "kernel": ("cauchy", "align"),
}
"""What each walk-through adds, and the stage that shows it."""
ONE_EPOCH = {"pretrain": {"epochs": 1}, "align": {"epochs": 1}, "disentangle": {"epochs": 1}}


@dataclass(frozen=True)
class WalkThrough:
    """One section of the document.

    Attributes:
        claimed: number of files of the product that it says it touches.
        files: {path: content} of those that it adds.
        diffs: changes of others.
        overrides: what uses the addition.
    """

    claimed: int
    files: dict[str, str]
    diffs: list[str]
    overrides: list[str]

    @property
    def touched(self) -> set[str]:
        """Paths of all files, tests too."""
        return {*self.files, *(path for diff in self.diffs for path in re.findall(r"^\+\+\+ b/(\S+)$", diff, re.M))}


def walk_throughs() -> dict[str, WalkThrough]:
    """Those of the document, by the last word of their headings."""
    found = {}
    for section in re.split(r"^## ", (ROOT / "docs/extending.md").read_text(), flags=re.MULTILINE)[1:]:
        if claim := re.search(r"\bIt touches (\d+) files\.", section):
            found[section.partition("\n")[0].split()[-1]] = WalkThrough(
                int(claim[1]),
                dict(re.findall(r"^New file (\S+):\n\n```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)),
                re.findall(r"^```diff\n(.*?)^```$", section, re.MULTILINE | re.DOTALL),
                [line for text in re.findall(r"^```text\n(.*?)^```$", section, re.M | re.S) for line in text.split()],
            )
    return found


WALK_THROUGHS = walk_throughs()
ADDITIONS = pytest.mark.parametrize("name", WALK_THROUGHS)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the copy with all additions gives, see `extending_worker`; and by "plain" the fingerprints without them."""
    folder = tmp_path_factory.mktemp("extending")
    copy = folder / "copy"
    for name in ("pad_dist", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    for walk_through in WALK_THROUGHS.values():
        apply(walk_through, copy)
    settings = write_settings(folder, log_every=1)
    values = json.loads(settings.read_text()) | {"sparse": {"backend": "torch"}}
    settings.write_text(json.dumps(values | {name: values.get(name, {}) | ONE_EPOCH[name] for name in ONE_EPOCH}))
    plain = {spec.name: fingerprint(spec) for spec in resolve_stages(load_config(str(settings)))}
    tests = sorted({path for one in WALK_THROUGHS.values() for path in one.touched if "/test_" in path})
    additions = json.dumps({name: [one.overrides, NEW[name][1]] for name, one in WALK_THROUGHS.items()})
    target = folder / "found.json"
    command = [sys.executable, "-m", "tests.extending_worker", str(settings), str(target), additions, *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy), "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    content: dict[str, Any] = json.loads(target.read_text())
    assert content["tests"] == 0, done.stdout[-8000:]
    return content | {"plain": plain}


def apply(walk_through: WalkThrough, copy: Path) -> None:
    """Change the copy as the document says."""
    for path, content in walk_through.files.items():
        assert not (copy / path).exists(), path
        (copy / path).write_text(content)
    for diff in walk_through.diffs:
        # The copy is no part of a repository, whatever lies above it.
        environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(copy.parent)}
        command = ["git", "apply", "-"]
        done = subprocess.run(
            command, cwd=copy, env=environment, input=diff, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{done.stderr}{diff}"


def test_the_document_has_a_walk_through_for_each_kind_of_addition() -> None:
    assert list(WALK_THROUGHS) == list(NEW)


@ADDITIONS
def test_an_addition_touches_no_more_files_than_claimed(name: str) -> None:
    walk_through = WALK_THROUGHS[name]
    product = {path for path in walk_through.touched if not path.startswith("tests/")}
    assert len(product) == walk_through.claimed <= 3


@ADDITIONS
def test_an_addition_is_planned_trained_and_evaluated(name: str, found: dict[str, Any]) -> None:
    one = found[name]
    assert one["planned"], one["plan"]
    assert len(one["losses"]) == 6 and all(math.isfinite(loss) for loss in one["losses"])
    expected = {"pretrain": ["id"], "align": ["aligned"], "disentangle": ["id", "last_item", "mixture"]}[NEW[name][1]]
    assert one["scorers"] == [*expected, "popularity"]


@ADDITIONS
def test_an_addition_is_in_the_reference_of_the_keys(name: str, found: dict[str, Any]) -> None:
    assert NEW[name][0] in found["reference"]


@ADDITIONS
def test_an_addition_has_a_fingerprint_of_its_own_and_changes_no_other(name: str, found: dict[str, Any]) -> None:
    assert found["base"] == found["plain"]
    assert found[name]["fingerprint"] != found["base"][NEW[name][1]]
