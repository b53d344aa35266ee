import os
import subprocess
import sys
from pathlib import Path

from tests.distributed import context_worker as worker
from tests.support.ranks import run_ranks

ROOT = Path(__file__).parents[2]


def test_all_ranks_take_what_the_first_one_finds() -> None:
    assert run_ranks(worker.found_by_the_first, 2) == ["version of rank 0"] * 2


def test_a_run_on_the_cpu_stays_there_whatever_device_deepspeed_has_chosen() -> None:
    # As on a machine with a GPU, which DeepSpeed takes when it is imported.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cuda"}
    command = [sys.executable, "-c", "from tests.distributed.context_worker import step_on_cpu; print(*step_on_cpu())"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines()[-1] == "cuda cpu"
