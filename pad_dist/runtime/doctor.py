"""Checks what a machine needs to run pad_dist, and gives the exact fix for what it lacks.

`pad-dist doctor` calls `diagnose`. `python -m pad_dist.runtime.doctor` makes the checks that are possible
before anything is installed: it needs the standard library alone, and `make` runs it first.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ENGINES = {
    "torch": "2.13.0",
    "torchrec": "1.8.0",
    "deepspeed": "0.19.8",
    "pyspark": "4.3.0",
    "transformers": "5.23.0",
    "pandas": "2.3.3",
}
"""The versions of requirements/ that were run together; pyspark needs pandas < 3."""

FBGEMM = "1.8.0"
"""torchrec and fbgemm must share the minor version."""

_FBGEMM_FIX = (
    "pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu && "
    f"pip install --no-deps fbgemm-gpu-cpu=={FBGEMM} torchrec=={ENGINES['torchrec']}"
)
_JAVA = 17


@dataclass(frozen=True)
class Check:
    """One check: what is needed, whether it is met, what the machine actually has, and the fix if it is not met."""

    name: str
    ok: bool
    actual: str
    fix: str


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    """The interpreter the lock files are for, able to make a virtual environment."""
    actual = ".".join(str(part) for part in version)
    has_venv = importlib.util.find_spec("ensurepip") is not None
    fix = _install(
        debian="apt-get install -y python3.11 python3.11-venv",
        fedora="dnf install -y python3.11",
        macos="brew install python@3.11",
    )
    ok = version[:2] == (3, 11) and has_venv
    return Check("Python 3.11", ok, actual if has_venv else f"{actual} without venv", fix)


def check_java(env: Mapping[str, str]) -> Check:
    """Java 17 or newer where Spark looks: JAVA_HOME/bin when it is set, else PATH."""
    name = "Java 17 or newer"
    fix = _install(
        debian="apt-get install -y openjdk-17-jre-headless || apt-get install -y openjdk-21-jre-headless",
        fedora="dnf install -y java-21-openjdk-headless",
        macos='brew install openjdk@21 && export JAVA_HOME="$(brew --prefix openjdk@21)"',
    )
    home = env.get("JAVA_HOME")
    java = f"{home}/bin/java" if home else shutil.which("java", path=env.get("PATH", ""))
    if java is None:
        return Check(name, False, "no java on PATH", fix)
    if not os.access(java, os.X_OK):
        return Check(name, False, f"JAVA_HOME has no {java}", f"unset JAVA_HOME, or: {fix}")
    answer = _run([java, "-version"])
    match = re.search(r'version "(?:1\.)?(\d+)', answer.stderr + answer.stdout)
    if match is None:
        return Check(name, False, f"{java} gives no version: {_last_line(answer)}", fix)
    if home and int(match[1]) < _JAVA:
        fix = f"unset JAVA_HOME or point it at Java 17 or newer, after: {fix}"
    return Check(name, int(match[1]) >= _JAVA, f"{match[1]} ({java})", fix)


def check_versions(installed: Mapping[str, str]) -> list[Check]:
    """The engines, at the versions that were run together. `installed`: distribution name to version."""
    checks = []
    for name, wanted in ENGINES.items():
        actual = installed.get(name)
        cpu = " --index-url https://download.pytorch.org/whl/cpu" if name == "torch" else ""
        fix = f"pip install --no-deps{cpu} {name}=={wanted}"
        checks.append(Check(f"{name} {wanted}", _public(actual) == wanted, actual or "not installed", fix))
    return checks


def check_fbgemm(installed: Mapping[str, str], system: str | None = None) -> Check:
    """One fbgemm, of the kind that torch is, of torchrec's minor version.

    `pip install torchrec` writes a CUDA fbgemm-gpu over the files of fbgemm-gpu-cpu.
    """
    name = "one fbgemm that fits torchrec"
    cpu, cuda = installed.get("fbgemm-gpu-cpu"), installed.get("fbgemm-gpu")
    if cpu and cuda:
        return Check(name, False, f"fbgemm-gpu {cuda} over fbgemm-gpu-cpu {cpu}", _FBGEMM_FIX)
    if not cpu and not cuda:
        # Other systems have no fbgemm; on them the torch backend serves one process.
        if (system or platform.system()) != "Linux":
            return Check(name, True, "none for this system: set sparse.backend=torch", "")
        return Check(name, False, "not installed", _FBGEMM_FIX)
    if cuda and installed.get("torch", "").endswith("+cpu"):
        return Check(name, False, f"CUDA fbgemm-gpu {cuda} beside torch {installed['torch']}", _FBGEMM_FIX)
    version, torchrec = cpu or cuda or "", installed.get("torchrec", "none")
    actual = f"fbgemm {version}, torchrec {torchrec}"
    kind = "fbgemm-gpu" if cuda else "fbgemm-gpu-cpu"
    fix = f"pip install --no-deps {kind}=={FBGEMM} torchrec=={ENGINES['torchrec']}"
    return Check(name, version.split(".")[:2] == torchrec.split(".")[:2], actual, fix)


def check_files(distribution: metadata.Distribution) -> Check:
    """The libraries of fbgemm are those of its package: another package may have replaced or removed them."""
    package = f"{distribution.metadata['Name']} {distribution.version}"
    libraries = [file for file in distribution.files or [] if file.suffix == ".so"]
    foreign = []
    for file in libraries:
        path = Path(str(file.locate()))
        if not path.is_file():
            foreign.append(f"{file} is missing")
        elif file.hash and _digest(path, file.hash.mode) != file.hash.value:
            foreign.append(f"{file} is another package's")
    actual = foreign[0] if foreign else f"{len(libraries)} libraries of {package}"
    return Check("fbgemm's own files", bool(libraries) and not foreign, actual, _FBGEMM_FIX)


def check_import(module: str, fix: str) -> Check:
    """The module imports; tried in a child process, because a bad binary can end the interpreter."""
    answer = _run([sys.executable, "-c", f"import {module}"])
    works = answer.returncode == 0
    return Check(f"import {module}", works, "works" if works else _last_line(answer), fix)


def check_disk(out: str, need_gib: float = 2.0) -> Check:
    """Free space where the run writes: shards, text table and checkpoints."""
    name = f"{need_gib:g} GiB free disk"
    if "://" in out and not out.startswith("file://"):
        return Check(name, True, f"{out} is remote", "")
    path = Path(out.removeprefix("file://")).absolute()
    parent = next(p for p in (path, *path.parents) if p.exists())
    free = shutil.disk_usage(parent).free / 2**30
    return Check(
        name, free >= need_gib, f"{free:.1f} GiB at {parent}", "free some space, or write elsewhere: --out DIR"
    )


def check_threads(env: Mapping[str, str], cores: int, world_size: int) -> Check:
    """Ranks times OpenMP threads fit the cores: if not, threads spin and steps take many times longer.

    The launchers give each rank one thread when OMP_NUM_THREADS is not set.
    """
    text = env.get("OMP_NUM_THREADS", "1")
    threads = int(text) if text.isdigit() else 0
    actual = f"{world_size} ranks x OMP_NUM_THREADS={text} on {cores} cores"
    fix = "export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE"
    return Check("threads", threads == 1 or 0 < threads * world_size <= cores, actual, fix)


def preflight(env: Mapping[str, str]) -> list[Check]:
    """What must exist before anything is installed."""
    return [check_python(), check_java(env)]


def diagnose(
    out: str = ".", world_size: int = 2, env: Mapping[str, str] | None = None, *, torchrec: bool = True
) -> list[Check]:
    """Every check, for a run of `world_size` ranks on this machine that writes to `out`.

    Without `torchrec` (sparse.backend=torch) neither it nor fbgemm is needed.
    """
    env = os.environ if env is None else env
    distributions = {_canonical(d.metadata["Name"]): d for d in metadata.distributions() if d.metadata["Name"]}
    installed = {name: d.version for name, d in distributions.items()}
    checks = preflight(env)
    checks += [check for check in check_versions(installed) if torchrec or not check.name.startswith("torchrec ")]
    if torchrec:
        checks.append(check_fbgemm(installed))
        fbgemm = [distributions[name] for name in ("fbgemm-gpu-cpu", "fbgemm-gpu") if name in distributions]
        if fbgemm:
            checks += [check_files(fbgemm[0]), check_import("torchrec", _FBGEMM_FIX)]
    return [*checks, check_disk(out), check_threads(env, os.cpu_count() or 1, world_size)]


def print_checks(checks: Sequence[Check]) -> int:
    """Print a table; return the exit status, 1 if any check failed."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "check", "found", "fix")
    for check in checks:
        status = "[green]ok[/]" if check.ok else "[red]NO[/]"
        table.add_row(status, check.name, check.actual, "" if check.ok else check.fix)
    Console().print(table)
    return int(not all(check.ok for check in checks))


def main() -> int:
    """Print one line for each thing that is missing before the installation; return the exit status."""
    missing = [check for check in preflight(os.environ) if not check.ok]
    for check in missing:
        print(f"{check.name}: {check.actual}; install it: {check.fix}", file=sys.stderr)
    return int(bool(missing))


def _install(debian: str, fedora: str, macos: str) -> str:
    """The command for this system, or all commands if the system is not known."""
    if platform.system() == "Darwin":
        return macos
    release = Path("/etc/os-release")
    family = " ".join(re.findall(r"^ID(?:_LIKE)?=(.*)$", release.read_text(), re.M)) if release.is_file() else ""
    if "debian" in family:
        return debian
    if "fedora" in family or "rhel" in family:
        return fedora
    return f"Debian or Ubuntu: {debian}; Fedora or RHEL: {fedora}; macOS: {macos}"


def _run(
    command: Sequence[str], stdin: str = "", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, input=stdin, env=env, capture_output=True, text=True, timeout=300, check=False)
    except OSError as error:
        return subprocess.CompletedProcess(command, 126, "", str(error))


def _last_line(answer: subprocess.CompletedProcess[str]) -> str:
    lines = (answer.stderr + answer.stdout).strip().splitlines()
    return lines[-1] if lines else f"exit status {answer.returncode}"


def _digest(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm, path.read_bytes()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _public(version: str | None) -> str:
    return (version or "").split("+")[0]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main())
