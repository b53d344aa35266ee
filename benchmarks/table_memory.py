"""Peak memory of each rank while a large table is made, trained, saved and loaded.

    python -m benchmarks.table_memory --dir DIR [--rows 1000000 10000000 50000000]

For each number of rows the pretrain stage starts on two ranks through the deepspeed launcher, gets
SIGKILL when an epoch is trained and saved, and starts again: it loads that checkpoint, trains an
epoch more and saves. The kernel's high-water mark of each rank's resident memory (VmHWM) must stay
within 1.15 x its shard's weights and optimizer state + 1.5 GB, and the plan (`pad-dist plan`) must
tell the higher rank's to within 10 %. Exit status 1 when one does not.
Takes as much memory as the table and a GB for each rank, and three times the table on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.support.many_items import write_many_items
from pad_dist.capacity.plan import plan_stage
from pad_dist.capacity.sizes import data_size
from pad_dist.config.load import load_config
from pad_dist.runtime.devices import profile
from pad_dist.sparse.row_shards import row_range
from pad_dist.stages.methods import find_stage, resolve_stages

ROOT = Path(__file__).parents[1]
PRETRAIN = str(ROOT / "launchers" / "pretrain.py")
RANKS, DIM, BATCH, STEPS, VALIDATED = 2, 64, 256, 20, 64
SETTINGS = {
    "name": "table-memory",
    "model": {"dim": DIM, "max_length": 20},
    "sparse": {"optimizer": "rowwise_adagrad", "sharding": "row_wise"},
    "training": {"batch_size": BATCH, "loss": {"kind": "sampled_softmax", "negatives": 2048}},
    "pretrain": {"epochs": 2},
}
LAUNCHES = "init, train, save", "load, train, save"
SAMPLED_S = 0.2
GB = 10**9


def main() -> None:
    """Print what is expected and one line per rank and launch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="for datasets and runs; deleted at the end")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000, 50_000_000])
    args = parser.parse_args()
    print("expected: every peak within 1.15 x (weights + state) + 1.5 GB, alike on both ranks and in both launches;")
    print("the plan within 10 % of the highest peak\n")
    print(f"tables of {DIM} columns on {RANKS} ranks; peaks in GB")
    print(
        "| rows | rank | weights + state | bound | init, train, save | load, train, save | peak / bound | plan / peak |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    within = True
    for rows in args.rows:
        folder = args.dir / str(rows)
        # Row 0 is padding.
        dataset = write_many_items(folder / "dataset", rows - 1, BATCH * STEPS, VALIDATED)
        (folder / "run.yaml").write_text(json.dumps(SETTINGS | {"dataset": dataset}))
        made = launch(folder, until=folder / f"run/pretrain/step-{STEPS:09d}/COMPLETE")
        loaded = launch(folder, until=folder / "run/pretrain/result.json")
        ratio = planned(folder / "run.yaml") / max(*made.values(), *loaded.values())
        within &= 0.9 <= ratio <= 1.1
        for rank in range(RANKS):
            first, stop = row_range(rows, rank, RANKS)
            shard = (stop - first) * (DIM + 1) * 4
            bound, peak = 1.15 * shard + 1.5 * GB, max(made[rank], loaded[rank])
            within &= peak <= bound
            values = " | ".join(f"{value / GB:.2f}" for value in (shard, bound, made[rank], loaded[rank]))
            print(f"| {rows:,} | {rank} | {values} | {peak / bound:.2f} | {ratio:.3f} |", flush=True)
        shutil.rmtree(folder)
    if not within:
        sys.exit(1)


def planned(config: Path) -> int:
    """Bytes that the plan tells for a rank."""
    settings = load_config(str(config))
    spec = find_stage(resolve_stages(settings), "pretrain")
    return plan_stage(spec, data_size(settings), profile("cpu", RANKS), RANKS).needed()


def launch(folder: Path, until: Path) -> dict[int, int]:
    """Train until a file is there, then kill; the most bytes that each rank held."""
    deepspeed = [str(Path(sys.executable).with_name("deepspeed")), "--quiet", "--num_gpus", str(RANKS)]
    command = [*deepspeed, "--master_port", "29713", PRETRAIN, "--config", f"{folder}/run.yaml"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    peaks: dict[int, int] = {}
    with (folder / "log").open("ab") as log:
        run = subprocess.Popen([*command, "--out", f"{folder}/run"], env=environment, stdout=log, stderr=log)
        while run.poll() is None and not until.exists():
            peaks |= high_water_marks(run.pid)
            time.sleep(SAMPLED_S)
        peaks |= high_water_marks(run.pid)
        for process in psutil.Process(run.pid).children(recursive=True) if run.poll() is None else []:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        run.wait(timeout=120)
    if not until.exists() or len(peaks) < RANKS:
        sys.exit(f"training ended with {run.returncode} before {until} was there: see {folder}/log")
    return peaks


def high_water_marks(launcher: int) -> dict[int, int]:
    """Bytes of VmHWM by rank, of the ranks that run."""
    found = {}
    with suppress(psutil.Error, OSError):
        for process in psutil.Process(launcher).children(recursive=True):
            if PRETRAIN in process.cmdline() and "-m" not in process.cmdline():
                status = Path(f"/proc/{process.pid}/status").read_text()
                line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
                found[int(process.environ()["RANK"])] = int(line.split()[1]) * 1024
    return found


if __name__ == "__main__":
    main()
