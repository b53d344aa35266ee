"""What `import pad_dist` offers."""

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

import pad_dist

ROOT = Path(__file__).parents[1]


def test_every_public_name_is_there_and_documented() -> None:
    assert all(getattr(pad_dist, name).__doc__ for name in pad_dist.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pad_dist.nothing


def test_the_example_is_true(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert doctest.testmod(pad_dist).failed == 0 < doctest.testmod(pad_dist).attempted


def test_importing_the_package_loads_no_library() -> None:
    code = "import sys, pad_dist; print({'torch', 'pydantic', 'pyspark', 'yaml'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
