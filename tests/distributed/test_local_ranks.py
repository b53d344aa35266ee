"""`pad-dist run` and the deepspeed launcher when ranks die or are told to end: real processes, real statuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from safetensors.numpy import load_file

from pad_dist.config.load import load_config
from pad_dist.dataset import versions
from pad_dist.distributed.local_ranks import run_ranks
from pad_dist.runtime.entry import LOST_RANK_STATUS, PREEMPTED_STATUS, USER_ERROR_STATUS
from tests.stages import faults_worker as worker
from tests.support.launch import Launch, free_port
from tests.support.tiny_dataset import random_sequences
from tests.support.tiny_text import write_tiny_text
from tests.support.tiny_versions import publish_tiny

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STEPS = 200  # 100 an epoch


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has its dataset and its text vectors, so that it begins with the first stage."""
    folder = tmp_path_factory.mktemp("local")
    root = f"{folder}/dataset"
    version = publish_tiny(root, random_sequences(1600, 100, seed=1), [[100, "tiny-100"]])
    write_tiny_text(root, 12)
    values = {
        "name": "local",
        "dataset": versions.version_url(root, version),
        "model": {"dim": 16, "max_length": 8},
        "training": {"batch_size": 16, "loss": {"negatives": 30}, "log_every": 1, "restarts": 1},
        "checkpoint": {"every": 20},
        "pretrain": {"epochs": 2},
    }
    (folder / "local.yaml").write_text(yaml.safe_dump(values))
    return folder / "local.yaml"


def pad_dist(*arguments: str) -> list[str]:
    return [sys.executable, "-u", "-c", "from pad_dist.cli.main import main; main()", "run", *arguments]


def deepspeed(*arguments: str) -> list[str]:
    command = Path(sys.executable).with_name("deepspeed")
    place = ["--quiet", "--num_gpus", "2", "--master_port", str(free_port()), str(ROOT / "launchers" / "pretrain.py")]
    return [str(command), *place, *arguments]


class Started:
    """A command under way; what it prints goes to a file."""

    def __init__(self, command: list[str], out: Path) -> None:
        self.log = out.with_suffix(".log")
        environment = os.environ | {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
        with self.log.open("w") as file:
            self.process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        self.tree = psutil.Process(self.process.pid)

    def wait_for(self, text: str, times: int = 1) -> None:
        """Wait until it has printed `text`."""
        until = time.monotonic() + 100
        while self.log.read_text().count(text) < times:
            assert self.process.poll() is None and time.monotonic() < until, self.log.read_text()
            time.sleep(0.02)

    def below(self) -> list[psutil.Process]:
        return self.tree.children(recursive=True)

    def end(self) -> int:
        """Its exit status; nothing of it may be left."""
        below = self.below()
        status = self.process.wait(60)
        _, left = psutil.wait_procs(below, timeout=60)
        for process in left:
            process.kill()
        assert not left
        return status


def finished(config: Path, out: Path) -> dict[str, np.ndarray]:
    """The last weights, after the stage went on to its end on ranks that nothing happens to."""
    settings = load_config(str(config), [], str(out)).model_dump(mode="json")
    out.mkdir(exist_ok=True)
    assert Launch(out / "log", 2, worker.train, settings, {}).statuses() == [0, 0], (out / "log").read_text()
    files = sorted((out / f"pretrain/step-{STEPS:09d}").glob("**/*.safetensors"))
    return {f"{file.name} {name}": value for file in files for name, value in load_file(file).items()}


def newest_step(out: Path) -> int:
    return int(json.loads(max(out.glob("pretrain/step-*/COMPLETE")).read_text())["step"])


@pytest.fixture(scope="module")
def whole(config: Path) -> dict[str, np.ndarray]:
    return finished(config, config.parent / "whole")


def assert_same(weights: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert expected and weights.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(weights[name], value, err_msg=name)


def test_a_run_replaces_a_killed_rank_and_ends_on_a_signal_without_loss(
    config: Path, whole: dict[str, np.ndarray], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run = Started(pad_dist("--config", str(config), "--out", str(out)), out)
    run.wait_for("epoch 1 step 25/")
    run.below()[1].kill()
    run.wait_for("resumes from")
    said = run.log.read_text()
    assert "pad-dist: error: rank 1 (" in said and "Traceback" not in said
    assert "pretrain: rank 1 (pid " in said and "by SIGKILL (is there enough memory?): start 1 of 1 again" in said
    run.wait_for("epoch 2 step 5/")
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == PREEMPTED_STATUS, run.log.read_text()
    assert run.log.read_text().endswith("pad-dist: stopped by a signal: the same command goes on\n")
    assert 105 <= newest_step(out) < STEPS
    assert_same(finished(config, out), whole)


def test_the_ranks_of_deepspeed_keep_their_steps_when_its_command_is_ended(
    config: Path, whole: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """The command itself dies at once, and does not tell its ranks."""
    out = tmp_path / "run"
    run = Started(deepspeed("--config", str(config), "--out", str(out)), out)
    run.wait_for("epoch 1 step 25/")
    below = run.below()
    run.process.terminate()
    assert run.process.wait(10) == -signal.SIGTERM
    _, left = psutil.wait_procs(below, timeout=60)
    for process in left:
        process.kill()
    assert not left and "pad-dist: stopped by a signal" in run.log.read_text()
    assert 25 <= newest_step(out) < STEPS
    assert_same(finished(config, out), whole)


@pytest.mark.parametrize(
    ("code", "restarts", "status", "starts", "told"),
    [
        ("raise SystemExit(3)", 5, 1, 1, "before its first step by exit status 3, as it did before"),
        ("raise SystemExit(69)", 0, LOST_RANK_STATUS, 0, "run the same command again, or set training.restarts"),
        ("import os; os.kill(os.getpid(), 9)", 0, LOST_RANK_STATUS, 0, "by SIGKILL .* run the same command again"),
        ("raise SystemExit(2)", 5, USER_ERROR_STATUS, 0, "^$"),
        ("raise SystemExit(75)", 5, PREEMPTED_STATUS, 0, "^$"),
    ],
    ids=["fails twice at the same place", "fails", "is killed", "a mistake", "a stop"],
)
def test_ranks_are_started_again_while_that_may_help(
    code: str, restarts: int, status: int, starts: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    with pytest.raises(SystemExit) as end:
        run_ranks("align", [sys.executable, "-c", code], 2, restarts, said.append)
    assert (end.value.code, len(said)) == (status, starts)
    assert re.search(told, capsys.readouterr().err)


def test_a_second_signal_kills_children_that_go_on() -> None:
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, print); print('ready'); time.sleep(60)"
    command = [sys.executable, "-uc", stubborn]
    code = f"from pad_dist.runtime.processes import run_children; run_children([{command!r}], [{{}}])"
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.stdout.readline()  # it was told, and goes on
    process.terminate()
    assert process.wait(10) == PREEMPTED_STATUS
