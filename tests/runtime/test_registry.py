"""Every section of a kind has one implementation, found without being named anywhere."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from pad_dist.config import EXPERTS, AuxiliaryConfig, Config, Section
from pad_dist.config.keys import sections_at
from pad_dist.model.backbones.base import BACKBONES, Backbone
from pad_dist.model.experts.base import EXPERT_CLASSES, Expert
from pad_dist.objectives.alignments.base import ALIGNMENTS, Alignment
from pad_dist.objectives.auxiliary.base import AUXILIARY_LOSSES, AuxiliaryLoss
from pad_dist.objectives.losses.base import LOSSES, Loss
from pad_dist.runtime.registry import Registry

KINDS: dict[str, tuple[Registry[Any], type, list[type]]] = {
    "backbones": (BACKBONES, Backbone, [*sections_at(Config, ["model", "backbone"])]),
    "losses": (LOSSES, Loss, [*sections_at(Config, ["training", "loss"])]),
    "alignments": (ALIGNMENTS, Alignment, [*sections_at(Config, ["align", "alignment"])]),
    "auxiliary losses": (AUXILIARY_LOSSES, AuxiliaryLoss, [*get_args(AuxiliaryConfig)]),
    "experts": (EXPERT_CLASSES, Expert, [*EXPERTS.values()]),
}
EVERY_KIND = pytest.mark.parametrize(("registry", "base", "sections"), KINDS.values(), ids=KINDS)


@EVERY_KIND
def test_every_section_has_exactly_one_implementation(
    registry: Registry[Any], base: type, sections: list[type]
) -> None:
    assert len(sections) > 1 and sorted(map(str, registry)) == sorted(map(str, sections))
    implementations = {registry[section] for section in sections}
    # A second class for a section would take the place of the first, which then implements none.
    assert implementations == {found for found in subclasses(base) if not inspect.isabstract(found)}


@EVERY_KIND
def test_a_section_that_nothing_implements_is_unknown(
    registry: Registry[Any], base: type, sections: list[type]
) -> None:
    class Other(Section):
        pass

    for section in (Other, Section):
        with pytest.raises(KeyError):
            registry[section]


def test_modules_of_the_package_are_imported_on_the_first_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "package_of_shapes"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "base.py").write_text(
        "from pad_dist.runtime.registry import Registry\nclass Section: ...\nSHAPES = Registry(__package__)\n"
    )
    (folder / "square.py").write_text(
        "from package_of_shapes.base import SHAPES, Section\n@SHAPES.register(Section)\nclass Square: ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    base = importlib.import_module("package_of_shapes.base")
    assert "package_of_shapes.square" not in sys.modules
    assert list(base.SHAPES) == [base.Section] and base.SHAPES[base.Section].__name__ == "Square"


def subclasses(base: type) -> Iterator[type]:
    """All classes of the product that derive from one."""
    for child in base.__subclasses__():
        if child.__module__.startswith("pad_dist."):
            yield child
        yield from subclasses(child)
