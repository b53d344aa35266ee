"""A Spark standalone cluster on loopback, out of the installed pyspark: one master and its workers as processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyspark

from benchmarks.support.builds import descendants

_START_S = 120.0


@dataclass(frozen=True)
class Cluster:
    """A running cluster; each worker has one core and 1 GiB.

    Attributes:
        master: spark://127.0.0.1:PORT.
        workers: one process each, the leader of a group in which its executors are too.
    """

    master: str
    workers: list[subprocess.Popen[bytes]]

    def python_workers(self, number: int) -> int:
        """How many processes now run Python tasks for a worker's executors."""
        commands = []
        for process in descendants(self.workers[number].pid):
            with suppress(psutil.Error):
                commands.append(process.cmdline())
        return sum("pyspark.daemon" in command for command in commands)

    def kill_worker(self, number: int) -> None:
        """SIGKILL a worker and its executors."""
        os.killpg(self.workers[number].pid, signal.SIGKILL)
        self.workers[number].wait()


@contextmanager
def standalone_cluster(folder: Path, workers: int = 2) -> Iterator[Cluster]:
    """Start a cluster whose files are in `folder`; it ends with the block.

    Raises:
        RuntimeError: a process does not come up; the message has its log.
    """
    folder.mkdir(parents=True)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        host = ["--host", "127.0.0.1", "--port", "0", "--webui-port", "0"]
        processes.append(_start(folder, "master", ["master.Master", *host]))
        master = _wait_for(processes[0], folder / "master.log", r"Starting Spark master at (spark://\S+)")
        for number in range(workers):
            size = ["--cores", "1", "--memory", "1g", "--work-dir", f"{folder}/work-{number}"]
            processes.append(_start(folder, f"worker-{number}", ["worker.Worker", *host, *size, master]))
        for number, process in enumerate(processes[1:]):
            _wait_for(process, folder / f"worker-{number}.log", "(Successfully registered) with master")
        yield Cluster(master, processes[1:])
    finally:
        for process in processes:
            left = descendants(process.pid)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            psutil.wait_procs(left, timeout=30)


def _start(folder: Path, name: str, arguments: list[str]) -> subprocess.Popen[bytes]:
    home = Path(pyspark.__file__).parent
    environment = os.environ | {
        "SPARK_HOME": str(home),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_LOCAL_DIRS": str(folder / "local"),
        "SPARK_DAEMON_MEMORY": "256m",
        "SPARK_DAEMON_JAVA_OPTS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    }
    with (folder / f"{name}.log").open("wb") as log:
        kind, *rest = arguments
        command = [str(home / "bin" / "spark-class"), f"org.apache.spark.deploy.{kind}", *rest]
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def _wait_for(process: subprocess.Popen[bytes], log: Path, pattern: str) -> str:
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        if found := re.search(pattern, log.read_text()):
            return found[1]
        time.sleep(0.05)
    raise RuntimeError(f"{log.stem} does not come up: {log.read_text()[-3000:]}")
