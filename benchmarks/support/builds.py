"""build_sequences as its users run it, in a process of its own, watched from outside."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Any, Self

import psutil

from pad_dist.config import Config
from pad_dist.dataset.manifest import Manifest, read_manifest, verify_file
from pad_dist.dataset.reader import Dataset

GIB = 1 << 30
_SAMPLED_S = 0.5
_DISK_SAMPLED_S = 5.0


@dataclass(frozen=True)
class Measured:
    """What a build took, as seen every 0.5 s (disk: every 5 s); memory is PSS, so that shared pages count once.

    Attributes:
        seconds: of the whole process.
        build_seconds: from when its Spark session is there to the last line it prints.
        jvm, python: most bytes of the JVM, and of the Python processes together.
        worker: most bytes of one Python process.
        memory: most bytes of all of them together.
        disk: most bytes of Spark's local files.
    """

    seconds: float = 0.0
    build_seconds: float = 0.0
    jvm: int = 0
    python: int = 0
    worker: int = 0
    memory: int = 0
    disk: int = 0


class Build:
    """A running build in a process group of its own; whatever is left of it ends with the `with` block.

    Args:
        scratch: a directory for Spark's local files and what else a killed build leaves; deleted at the end.
    """

    def __init__(self, config: Config, scratch: Path) -> None:
        self._scratch = scratch
        (scratch / "spark").mkdir(parents=True)
        conf = dict(config.data.spark_conf)
        java = f"{conf.get('spark.driver.extraJavaOptions', '')} -Djava.io.tmpdir={scratch}".strip()
        conf |= {"spark.local.dir": f"{scratch}/spark", "spark.driver.extraJavaOptions": java}
        own = config.model_copy(update={"data": config.data.model_copy(update={"spark_conf": conf})})
        (scratch / "run.yaml").write_text(own.model_dump_json(exclude_defaults=True))
        self._log = (scratch / "stderr").open("wb")
        self._started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "spark_jobs.build_sequences", "--config", f"{scratch}/run.yaml"],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(scratch)},
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        self._lines: list[tuple[float, str]] = []
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append((time.perf_counter(), line))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.process.poll() is None:
            self.kill()
        self._reader.join(10)
        self._log.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def kill(self) -> None:
        """SIGKILL the driver, Python and JVM; its Python workers, which no signal reaches, must end by themselves.

        Raises:
            RuntimeError: some do not, and are killed; or the build has failed before.
        """
        family = descendants(self.process.pid)
        with suppress(ProcessLookupError):  # has ended, well or not
            os.killpg(self.process.pid, signal.SIGKILL)
        self._require(self.process.wait() in (0, -signal.SIGKILL))
        _, alive = psutil.wait_procs(family, timeout=30)
        for orphan in alive:
            orphan.kill()
        if alive:
            raise RuntimeError(f"{len(alive)} processes outlive their driver")

    def finish(self, timeout: float) -> Measured:
        """Watch it to its end.

        Raises:
            RuntimeError: it fails, with what it said; or it takes longer than `timeout` seconds.
        """
        peak = Measured()
        disk_seen = -_DISK_SAMPLED_S
        while self.process.poll() is None:
            now = time.perf_counter() - self._started
            if now > timeout:
                raise RuntimeError(f"the build takes more than {timeout:.0f} s")
            peak = _higher(peak, _memory(self.process.pid))
            if now - disk_seen > _DISK_SAMPLED_S:
                disk_seen, peak = now, _higher(peak, Measured(disk=_disk(self._scratch / "spark")))
            time.sleep(_SAMPLED_S)
        seconds = time.perf_counter() - self._started
        self._reader.join(10)
        self._require(self.process.returncode == 0)
        return replace(peak, seconds=seconds, build_seconds=self._lines[-1][0] - self._lines[0][0])

    def _require(self, well: bool) -> None:
        if not well:
            raise RuntimeError(f"the build fails: {(self._scratch / 'stderr').read_text()[-3000:]}")


def run_build(config: Config, scratch: Path, timeout: float = 7200) -> Measured:
    """Build to the end."""
    with Build(config, scratch) as build:
        return build.finish(timeout)


def descendants(pid: int) -> list[psutil.Process]:
    """Children of a process, their children and so on; none if it has ended."""
    try:
        children: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return children


def checked(root: str) -> Manifest:
    """The manifest of the current version, when it opens, every file verifies and the version holds no other.

    Raises:
        UserError: it does not open or verify.
        RuntimeError: the version holds a file that the manifest does not list.
    """
    url = Dataset.open(root).url
    manifest = read_manifest(url, "the benchmark")
    listed = [entry for group in manifest.groups.values() for entry in group]
    for entry in listed:
        verify_file(url, entry)
    found = {str(path.relative_to(url)) for path in Path(url).rglob("*") if path.is_file()}
    strays = found - {entry.path for entry in listed} - {"manifest.json", "quality.json", "quality.html"}
    if strays:
        raise RuntimeError(f"{url} holds {sorted(strays)}, which its manifest does not list")
    return manifest


def fresh_copy(dataset: str, to: Path) -> str:
    """A dataset with the same versions, in place of what is at `to`: files never change, so they are linked."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(dataset, to, copy_function=os.link)
    return str(to)


def _higher(one: Measured, other: Measured) -> Measured:
    return Measured(**{name: max(value, getattr(other, name)) for name, value in vars(one).items()})


def _memory(pid: int) -> Measured:
    """PSS of a process and its descendants now."""
    jvm = python = worker = 0
    for process in [psutil.Process(pid), *descendants(pid)]:
        try:
            is_java = process.name() == "java"
            if not is_java and Path(process.exe()).name == "java":
                continue  # a fork of the JVM: a thread's name, the JVM's memory, until it runs its own program
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except (psutil.Error, OSError):
            continue  # has ended
        size = next((int(line.split()[1]) << 10 for line in rollup.splitlines() if line.startswith("Pss:")), 0)
        if is_java:
            jvm += size
        else:
            python, worker = python + size, max(worker, size)
    return Measured(jvm=jvm, python=python, worker=worker, memory=jvm + python)


def _disk(folder: Path) -> int:
    """Bytes of the files below; Spark deletes some meanwhile."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(path, name)).st_size
            except FileNotFoundError:
                continue
    return total
