"""Which runs go side by side, what a signal does, and stages that are taken over, with small processes as runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from pad_dist.compare import schedule
from pad_dist.compare.jobs import Job
from pad_dist.compare.schedule import run_all
from pad_dist.config import Config
from pad_dist.errors import UserError
from pad_dist.runtime.entry import PREEMPTED_STATUS

PROGRAM = """
import json, pathlib, sys, time
out, status, stages = pathlib.Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
print("here", flush=True)
for stage, fingerprint in stages.items():
    time.sleep(0.4)
    (out / stage).mkdir(parents=True, exist_ok=True)
    (out / stage / "result.json").write_text(json.dumps({"fingerprint": fingerprint}))
sys.exit(status)
"""


@dataclass(frozen=True)
class Small(Job):
    """A job whose process finishes stages one by one."""

    status: int = 0
    stages_of: str = "{}"

    def command(self) -> list[str]:
        return [sys.executable, "-c", PROGRAM, self.config.out, str(self.status), self.stages_of]


def small(folder: Path, method: str, stages: dict[str, str], status: int = 0) -> tuple[Job, dict[str, str]]:
    config = Config.model_validate({"name": "tiny", "out": f"{folder}/{method}"})
    return Small("d", method, 1, "c.yaml", (), (), config, status, json.dumps(stages)), stages


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_POLL_S", 0.01)


def test_a_job_waits_for_a_stage_that_another_one_trains_but_for_no_more(tmp_path: Path) -> None:
    said: list[str] = []
    jobs = [
        small(tmp_path, "a", {"pretrain": "p", "align": "x"}),
        small(tmp_path, "b", {"pretrain": "p", "align": "y"}),
        small(tmp_path, "c", {"pretrain": "q"}),
    ]
    assert run_all(jobs, 2, said.append) == []
    order = [line.split(":")[0].split("/")[1] + line.split(":")[1][:6] for line in said]
    # b, the second in the queue, starts when a has the first stage: c goes before it.
    assert order[:2] == ["a start", "c start"] and order.index("b start") < order.index("b done ")
    assert order.index("b start") > order.index("c start")
    done = (tmp_path / "a" / "pretrain" / "result.json").stat().st_mtime
    assert (tmp_path / "b" / "run.log").stat().st_mtime >= done


def test_a_stage_whose_run_failed_is_trained_by_the_next_one(tmp_path: Path) -> None:
    said: list[str] = []
    jobs = [small(tmp_path, "a", {}, status=3), small(tmp_path, "b", {"pretrain": "p"})]
    jobs[0] = (jobs[0][0], {"pretrain": "p"})
    assert [job.method for job in run_all(jobs, 2, said.append)] == ["a"]
    assert [line for line in said if "failed" in line] == [said[1]]
    assert f"by exit status 3, see {tmp_path}/a/run.log" in said[1]
    assert (tmp_path / "b" / "pretrain" / "result.json").exists()
    assert "here" in (tmp_path / "a" / "run.log").read_text()


def test_no_more_run_at_a_time_than_asked_for(tmp_path: Path) -> None:
    said: list[str] = []
    run_all([small(tmp_path, name, {"pretrain": name}) for name in "abc"], 1, said.append)
    assert [line.rpartition(": ")[2][:5] for line in said] == ["start", "done "] * 3


def test_a_place_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/a cannot be written, choose another place"):
        run_all([small(tmp_path / "file", "a", {})], 1, print)


def test_a_signal_ends_the_runs_and_starts_no_other(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []

    def stop_when_started() -> None:
        log = tmp_path / "a" / "run.log"
        until = time.monotonic() + 30
        while time.monotonic() < until and not (log.exists() and "here" in log.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop_when_started)
    thread.start()
    with pytest.raises(SystemExit) as ended:
        run_all([small(tmp_path, n, {str(k): n for k in range(200)}) for n in "ab"], 1, said.append)
    thread.join()
    assert ended.value.code == PREEMPTED_STATUS
    assert said == ["d/a/seed-1: start"] and not (tmp_path / "b").exists()
    assert "stopped by a signal" in capfd.readouterr().err
    assert subprocess.run(["pgrep", "-f", f"{tmp_path}/a"], capture_output=True, check=False).returncode == 1


def test_no_run_goes_on_where_the_record_of_the_one_beside_it_cannot_be_written(tmp_path: Path) -> None:
    def full(job: Job) -> None:
        raise UserError(f"{job.name}: no room")

    jobs = [small(tmp_path, "a", {"pretrain": "p"}), small(tmp_path, "b", {str(k): "b" for k in range(200)})]
    with pytest.raises(UserError, match="d/a/seed-1: no room"):
        run_all(jobs, 2, lambda text: None, full)
    assert subprocess.run(["pgrep", "-f", f"{tmp_path}/b"], capture_output=True, check=False).returncode == 1
