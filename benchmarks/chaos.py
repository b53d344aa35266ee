"""Training that is killed again and again, against the same training left alone.

    python -m benchmarks.chaos --dir DIR [--kills 30]

Each time the pretrain stage starts anew on two ranks through the deepspeed launcher, one rank or
all of them get SIGKILL, at a random moment or while a checkpoint is written, and the same command
runs again to the end. All tensors of its checkpoints must then equal the undisturbed run's to the
bit. Exit status 1 when one differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from numpy.typing import NDArray
from safetensors.numpy import load_file

from tests.support.tiny_dataset import random_sequences, write_tiny_dataset

ROOT = Path(__file__).parents[1]
PRETRAIN = str(ROOT / "launchers" / "pretrain.py")
SETTINGS = {
    "name": "chaos",
    "model": {"dim": 32, "max_length": 8},
    "training": {"batch_size": 32, "loss": {"negatives": 100}},
    "checkpoint": {"every": 3},
    "pretrain": {"epochs": 30, "patience": 30},
}


def main() -> None:
    """Print what is expected, one line per killed run and how many ended exactly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="for the runs; deleted at the end")
    parser.add_argument("--kills", type=int, default=30, help="every third one during a save")
    args = parser.parse_args()
    print("expected: every run goes on and ends with the weights of the undisturbed one, to the bit")
    draw = random.Random(7)
    dataset = write_tiny_dataset(args.dir / "dataset", random_sequences(320, 200, seed=1), 200)
    (args.dir / "run.yaml").write_text(json.dumps(SETTINGS | {"dataset": dataset}))
    whole = launch(args.dir, "whole")
    started = time.monotonic()
    first_save(whole, args.dir / "whole")
    begun = time.monotonic()
    finish(whole, args.dir / "whole")
    seconds = time.monotonic() - begun
    print(f"undisturbed: {begun - started:.0f} s to start, {seconds:.0f} s of training\n", flush=True)
    expected = digests(args.dir / "whole")
    print("| killed | s after the first save | resumes from step | result |\n|---|---|---|---|")
    exact = 0
    for number in range(args.kills):
        out = args.dir / "killed"
        shutil.rmtree(out, ignore_errors=True)
        saving, who = number % 3 == 2, draw.choice(["one rank", "all ranks"])
        delay = draw.uniform(0, 0.8 * seconds)
        kill(args.dir, out, delay, saving=saving, every=who == "all ranks", draw=draw)
        again = launch(args.dir, "killed")
        finish(again, out)
        said = [line for line in log(out).read_text().splitlines() if "resumes from" in line]
        step = said[-1].split(": ")[-1].split()[0] if said else "0"
        same = digests(out) == expected
        exact += same
        place = f"{who}{', saving' if saving else ''}"
        print(f"| {place} | {delay:.1f} | {step} | {'exact' if same else 'DIFFERS'} |", flush=True)
    print(f"\n{exact} of {args.kills} exact")
    if exact != args.kills:
        sys.exit(1)
    shutil.rmtree(args.dir)


def launch(folder: Path, name: str) -> subprocess.Popen[bytes]:
    """Begin training into <folder>/<name> on two ranks."""
    deepspeed = [str(Path(sys.executable).with_name("deepspeed")), "--quiet", "--num_gpus", "2", "--master_port"]
    command = [*deepspeed, "29711", PRETRAIN, "--config", f"{folder}/run.yaml", "--out", f"{folder}/{name}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    with log(folder / name).open("ab") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)


def log(out: Path) -> Path:
    """What all launches into `out` have printed."""
    return out.with_suffix(".log")


def first_save(run: subprocess.Popen[bytes], out: Path) -> None:
    """Wait until the first checkpoint is complete."""
    while not list(out.glob("pretrain/step-*/COMPLETE")):
        if run.poll() is not None:
            sys.exit(f"training ended with {run.returncode} before it saved: see {log(out)}")
        time.sleep(0.01)


def finish(run: subprocess.Popen[bytes], out: Path) -> None:
    """Wait for the end, which must be a good one."""
    if run.wait(timeout=600):
        sys.exit(f"training failed with {run.returncode}: see {log(out)}")


def kill(folder: Path, out: Path, delay: float, *, saving: bool, every: bool, draw: random.Random) -> None:
    """Start, wait, kill one rank or every process, and leave none of them."""
    run = launch(folder, out.name)
    first_save(run, out)
    time.sleep(delay)
    while saving and run.poll() is None and not any(not (p / "COMPLETE").exists() for p in out.glob("pretrain/step-*")):
        time.sleep(0.0005)
    launched = psutil.Process(run.pid).children(recursive=True) if run.poll() is None else []
    ranks = [process for process in launched if is_rank(process)]
    for process in launched if every else draw.sample(ranks, min(1, len(ranks))):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    run.wait(timeout=120)  # the launcher ends the other rank
    psutil.wait_procs(launched, timeout=60)


def is_rank(process: psutil.Process) -> bool:
    """Whether it is a rank that has not ended yet."""
    with suppress(psutil.Error):
        return PRETRAIN in process.cmdline() and "-m" not in process.cmdline()
    return False


def digests(out: Path) -> dict[str, str]:
    """Checksum of each tensor of weights and optimizer state, by file and name (files hold them in any order)."""
    files = sorted(out.glob("pretrain/step-*/**/*.safetensors"))
    tensors = ((file, name, value) for file in files for name, value in load_file(file).items())
    return {f"{file.relative_to(out)} {name}": _digest(value) for file, name, value in tensors}


def _digest(values: NDArray[Any]) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()


if __name__ == "__main__":
    main()
