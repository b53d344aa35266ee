import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from pad_dist.runtime import doctor
from pad_dist.runtime.doctor import Check

ROOT = Path(__file__).parents[2]
GOOD = {"torch": "2.13.0+cpu", "torchrec": "1.8.0", "fbgemm-gpu-cpu": "1.8.0"}


def fake_java(directory: Path, prints: str) -> Path:
    """A java that prints this to stderr, as the real one does for -version."""
    directory.mkdir(parents=True, exist_ok=True)
    java = directory / "java"
    java.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{prints}\nEND\n")
    java.chmod(0o755)
    return java


@pytest.mark.parametrize("version", [(3, 10, 14), (3, 12, 1)])
def test_another_python_is_refused(version: tuple[int, ...]) -> None:
    assert not doctor.check_python(version).ok
    assert doctor.check_python((3, 11, 0)).ok


def test_no_java_on_path_says_what_to_install(tmp_path: Path) -> None:
    check = doctor.check_java({"PATH": str(tmp_path)})
    assert not check.ok
    assert check.actual == "no java on PATH"
    assert "install" in check.fix


@pytest.mark.parametrize(
    ("prints", "version", "ok"),
    [
        ('openjdk version "11.0.22" 2024-01-16', "11", False),
        ('java version "1.8.0_401"', "8", False),
        ('openjdk version "17" 2021-09-14', "17", True),
        ('Picked up JAVA_TOOL_OPTIONS: -Xmx1g\nopenjdk version "21.0.5" 2024-10-15 LTS', "21", True),
    ],
)
def test_java_is_judged_by_what_it_prints(tmp_path: Path, prints: str, version: str, ok: bool) -> None:
    java = fake_java(tmp_path, prints)
    check = doctor.check_java({"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"})
    assert (check.ok, check.actual) == (ok, f"{version} ({java})")


def test_java_home_comes_before_path_as_in_spark(tmp_path: Path) -> None:
    fake_java(tmp_path / "new", 'openjdk version "21"')
    old = fake_java(tmp_path / "old" / "bin", 'openjdk version "11"')
    check = doctor.check_java({"JAVA_HOME": str(tmp_path / "old"), "PATH": str(tmp_path / "new")})
    assert (check.ok, check.actual) == (False, f"11 ({old})")
    assert "JAVA_HOME" in check.fix


def test_a_java_home_without_java_is_named(tmp_path: Path) -> None:
    check = doctor.check_java({"JAVA_HOME": str(tmp_path), "PATH": os.environ["PATH"]})
    assert not check.ok
    assert str(tmp_path) in check.actual


@pytest.mark.parametrize("content", ["#!/bin/sh\necho 'No Java runtime present' >&2; exit 1\n", "not a program"])
def test_a_java_that_does_not_run_is_a_failed_check(tmp_path: Path, content: str) -> None:
    java = tmp_path / "java"
    java.write_text(content)
    java.chmod(0o755)
    check = doctor.check_java({"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"})
    assert not check.ok
    assert "gives no version" in check.actual


def test_each_engine_must_have_its_version() -> None:
    installed = {**doctor.ENGINES, "torch": "2.13.0+cpu", "pandas": "3.0.1"}
    del installed["pyspark"]
    failed = {check.name: check for check in doctor.check_versions(installed) if not check.ok}
    assert set(failed) == {"pandas 2.3.3", "pyspark 4.3.0"}
    assert failed["pandas 2.3.3"].actual == "3.0.1"
    assert failed["pyspark 4.3.0"].actual == "not installed"
    assert failed["pyspark 4.3.0"].fix == "pip install --no-deps pyspark==4.3.0"


def test_one_fitting_fbgemm_passes() -> None:
    assert doctor.check_fbgemm(GOOD).ok
    assert doctor.check_fbgemm({"torch": "2.13.0", "torchrec": "1.8.0", "fbgemm-gpu": "1.8.1"}).ok


@pytest.mark.parametrize(
    ("change", "actual"),
    [
        ({"fbgemm-gpu": "1.9.0"}, "fbgemm-gpu 1.9.0 over fbgemm-gpu-cpu 1.8.0"),
        ({"fbgemm-gpu-cpu": "", "fbgemm-gpu": "1.8.0"}, "CUDA fbgemm-gpu 1.8.0 beside torch 2.13.0+cpu"),
        ({"torchrec": "1.7.0"}, "fbgemm 1.8.0, torchrec 1.7.0"),
        ({"torchrec": ""}, "fbgemm 1.8.0, torchrec none"),
        ({"fbgemm-gpu-cpu": ""}, "not installed"),
    ],
)
def test_the_fbgemm_trap_is_seen(change: dict[str, str], actual: str) -> None:
    installed = {name: version for name, version in {**GOOD, **change}.items() if version}
    check = doctor.check_fbgemm(installed, system="Linux")
    assert (check.ok, check.actual) == (False, actual)
    assert "fbgemm-gpu-cpu==1.8.0" in check.fix


def test_where_there_is_no_fbgemm_the_torch_backend_is_named() -> None:
    check = doctor.check_fbgemm({"torch": "2.13.0"}, system="Darwin")
    assert check.ok
    assert "sparse.backend=torch" in check.actual


@pytest.fixture
def package(tmp_path: Path) -> metadata.Distribution:
    """An installed package of two libraries, with the hashes that its installer recorded."""
    (tmp_path / "fbgemm_gpu").mkdir()
    rows = ["x-1.0.dist-info/METADATA,,"]
    for name in ("a.so", "b.so"):
        path = tmp_path / "fbgemm_gpu" / name
        path.write_bytes(name.encode())
        rows.append(f"fbgemm_gpu/{name},sha256={doctor._digest(path, 'sha256')},4")
    info = tmp_path / "x-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: x\nVersion: 1.0\n")
    (info / "RECORD").write_text("\n".join(rows) + "\n")
    return metadata.Distribution.at(info)


def test_libraries_as_installed_pass(package: metadata.Distribution) -> None:
    assert doctor.check_files(package) == Check("fbgemm's own files", True, "2 libraries of x 1.0", doctor._FBGEMM_FIX)


def test_libraries_written_by_another_package_are_seen(package: metadata.Distribution, tmp_path: Path) -> None:
    (tmp_path / "fbgemm_gpu" / "b.so").write_bytes(b"CUDA")
    check = doctor.check_files(package)
    assert (check.ok, check.actual) == (False, "fbgemm_gpu/b.so is another package's")


def test_libraries_removed_with_another_package_are_seen(package: metadata.Distribution, tmp_path: Path) -> None:
    (tmp_path / "fbgemm_gpu" / "a.so").unlink()
    check = doctor.check_files(package)
    assert (check.ok, check.actual) == (False, "fbgemm_gpu/a.so is missing")


def test_an_import_that_fails_gives_its_last_line() -> None:
    check = doctor.check_import("pad_dist_no_such_module", "fix it")
    assert (check.ok, check.fix) == (False, "fix it")
    assert check.actual == "ModuleNotFoundError: No module named 'pad_dist_no_such_module'"


def test_disk_is_that_of_the_nearest_directory_that_exists(tmp_path: Path) -> None:
    out = tmp_path / "not" / "yet"
    assert doctor.check_disk(str(out), need_gib=0).actual.endswith(f"GiB at {tmp_path}")
    assert not doctor.check_disk(f"file://{out}", need_gib=1e9).ok
    assert doctor.check_disk("s3://bucket/run", need_gib=1e9).ok


@pytest.mark.parametrize(
    ("env", "world_size", "ok"),
    [
        ({}, 2, True),
        ({"OMP_NUM_THREADS": "1"}, 8, True),
        ({"OMP_NUM_THREADS": "2"}, 2, True),
        ({"OMP_NUM_THREADS": "4"}, 2, False),
        ({"OMP_NUM_THREADS": "all"}, 1, False),
        ({"OMP_NUM_THREADS": "0"}, 1, False),
    ],
)
def test_ranks_times_threads_must_fit_the_cores(env: dict[str, str], world_size: int, ok: bool) -> None:
    assert doctor.check_threads(env, cores=4, world_size=world_size).ok == ok


def test_the_installed_environment_is_healthy(tmp_path: Path) -> None:
    checks = doctor.diagnose(str(tmp_path), world_size=2)
    assert {"Java 17 or newer", "import torchrec", "threads"} <= {c.name for c in checks}
    machine = {"2 GiB free disk", "threads"}  # of the moment, not of the installation
    assert [check for check in checks if not check.ok and check.name not in machine] == []


def test_the_torch_backend_needs_neither_torchrec_nor_fbgemm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    present = [d for d in doctor.metadata.distributions() if not d.metadata["Name"].startswith(("torchrec", "fbgemm"))]
    monkeypatch.setattr(doctor.metadata, "distributions", lambda: present)
    broken = {check.name.split()[0] for check in doctor.diagnose(str(tmp_path)) if not check.ok}
    assert {"torchrec", "one"} <= broken
    spared = {check.name.split()[0] for check in doctor.diagnose(str(tmp_path), torchrec=False) if not check.ok}
    assert not {"torchrec", "one"} & spared


def test_any_failure_is_the_exit_status_and_its_fix_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = Check("good", True, "it", "hidden"), Check("bad", False, "nothing", "do this")
    assert doctor.print_checks([good]) == 0
    assert doctor.print_checks([good, bad]) == 1
    shown = capsys.readouterr().out
    assert "do this" in shown
    assert "hidden" not in shown


def preflight(path: str) -> subprocess.CompletedProcess[str]:
    """What `make` runs first: without any installed package."""
    env = {key: value for key, value in os.environ.items() if key not in ("JAVA_HOME",)} | {"PATH": path}
    command = [sys.executable, "-S", "-m", "pad_dist.runtime.doctor"]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def test_preflight_is_silent_on_a_good_machine() -> None:
    answer = preflight(os.environ["PATH"])
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")


def test_preflight_gives_one_line_for_each_missing_thing(tmp_path: Path) -> None:
    answer = preflight(str(tmp_path))
    assert answer.returncode == 1
    assert [line.split(":")[0] for line in answer.stderr.splitlines()] == ["Java 17 or newer"]


def test_make_stops_before_any_work_when_java_is_too_old(tmp_path: Path) -> None:
    fake_java(tmp_path, 'openjdk version "11.0.22"')
    env = {key: value for key, value in os.environ.items() if key not in ("JAVA_HOME", "MAKEFLAGS", "MAKEOVERRIDES")}
    env["PATH"] = f"{tmp_path}{os.pathsep}{env['PATH']}"
    (tmp_path / "file").touch()  # should the work begin all the same, it fails at once
    command = ["make", "setup", f"VENV={tmp_path}/file/venv", f"PYTHON={sys.executable}"]
    answer = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert answer.returncode != 0
    assert "Java 17 or newer: 11 " in answer.stderr
    assert "-m venv" not in answer.stdout
