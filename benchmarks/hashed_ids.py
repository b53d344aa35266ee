"""Hashed tables: an endless stream of new ids, a checkpoint on other ranks, the demo against one row per item.

    python -m benchmarks.hashed_ids --dir DIR [--ids 10000000] [--override pretrain.epochs=6 ...]

Prints what is expected, then what was found. Exit status 1 when something differs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.support.id_stream import BATCH, DIM, ROWS, Found, expected, follow, loaded, saved, settings_of
from pad_dist.dataset import versions
from pad_dist.sparse.id_map import map_bytes
from tests.support.ranks import run_ranks

ROOT = Path(__file__).parents[1]
MIB = 1 << 20
FIXED = 200 * MIB
"""What a rank may take beside tables, optimizer state and map: buffers of a batch, libraries as they are first used."""
SLACK = 32 * MIB
"""How much the peak may move between steps that hold different buffers at once."""
SHARE = 0.05
HASHED = ["sparse.hashed.rows=65536", "sparse.hashed.buckets=1024"]


def main() -> None:
    """Print the three parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="for runs and a checkpoint; deleted at the end")
    parser.add_argument("--ids", type=int, default=10_000_000, help="distinct ids of the stream")
    parser.add_argument("--override", nargs="*", default=[], help="settings of both runs of the demo")
    args = parser.parse_args()
    wrong = stream(args.ids) + reshard(args.dir / "checkpoint", args.ids // 5)
    wrong += demo(args.dir, args.override)
    if wrong:
        sys.exit("; ".join(wrong))
    shutil.rmtree(args.dir)


def stream(ids: int) -> list[str]:
    """Each id comes once, in batches of `BATCH`; returns what is not as expected."""
    live, counters = expected(ids)
    print(
        f"expected of {ids:,} ids in {ROWS:,} rows of {DIM}: exactly {counters}, the same ids with rows on one and two "
        f"ranks; at most tables + state + map + {FIXED // MIB} MiB, after all ids at most {SLACK // MIB} MiB "
        "more than after half of them; with admit_after=2 no id gets a row\n"
    )
    print("| ranks | admit_after | ids/s | MiB a rank after half | MiB after all | bound, MiB | as expected |")
    print("|---|---|---|---|---|---|---|")
    wrong = []
    for world_size, admit_after in ((1, 1), (2, 1), (1, 2)):
        ranks: list[Found] = run_ranks(follow, world_size, ids, admit_after, timeout=1800)
        bound = (ROWS * (4 * DIM + 4) + map_bytes(settings_of(admit_after))) // world_size + FIXED
        peak, half = max(rank.peak for rank in ranks), max(rank.half for rank in ranks)
        problems = [] if peak <= min(bound, half + SLACK) else ["memory"]
        wanted = counters if admit_after == 1 else dict.fromkeys(counters, 0) | {"id.unadmitted": ids}
        problems += [] if all(rank.counters == wanted for rank in ranks) else [f"counters {ranks[0].counters}"]
        found = joined(ranks, ids)
        problems += (
            [] if np.array_equal(found, live if admit_after == 1 else np.zeros(ids, bool)) else ["ids with rows"]
        )
        speed = ids / max(rank.seconds for rank in ranks)
        numbers = f"{speed:,.0f} | {half / MIB:.0f} | {peak / MIB:.0f} | {bound / MIB:.0f}"
        print(f"| {world_size} | {admit_after} | {numbers} | {', '.join(problems) or 'yes'} |", flush=True)
        wrong += problems
    return wrong


def reshard(folder: Path, ids: int) -> list[str]:
    """Save on two ranks, load on one and three; returns what is not as expected."""
    print("\nexpected of a checkpoint of two ranks: the same vector for each id, and the same counters, on any ranks\n")
    print("| ranks | checksum of all vectors | evicted |\n|---|---|---|")
    found = {2: run_ranks(saved, 2, str(folder), ids, timeout=600)}
    found |= {number: run_ranks(loaded, number, str(folder), ids, timeout=600) for number in (1, 3)}
    for number, ranks in found.items():
        checksum, counters = ranks[0]
        print(f"| {number} | {checksum:08x} | {counters['id.evicted']:,} |", flush=True)
    return [] if all(rank == found[2][0] for ranks in found.values() for rank in ranks) else ["checkpoint"]


def joined(ranks: list[Found], ids: int) -> Any:
    """Whether each id of the stream has a row, from what the ranks found of their shares of each batch."""
    sizes = [min(BATCH, ids - first) for first in range(0, ids, BATCH)]
    cuts = [np.cumsum([n * (r + 1) // len(ranks) - n * r // len(ranks) for n in sizes])[:-1] for r in range(len(ranks))]
    parts = [np.split(rank.live, cut) for rank, cut in zip(ranks, cuts, strict=True)]
    return np.concatenate([part for batch in zip(*parts, strict=True) for part in batch])


def demo(folder: Path, overrides: list[str]) -> list[str]:
    """The demo with one row per item and with hashed ids that all have room; returns what is not as expected."""
    print(f"\nexpected of the demo: nothing evicted, test hr@10 of each stage within {SHARE:.0%}\n")
    dense = run(folder / "dense", overrides)
    version = versions.resolve(f"{folder}/dense/dataset")
    hashed = run(folder / "hashed", [*overrides, *HASHED, f"dataset={version}"])
    print("| stage | hr@10, a row per item | hr@10, hashed | difference | evicted |\n|---|---|---|---|---|")
    wrong = []
    for stage in dense["stages"]:
        one, other = (report["stages"][stage]["test"]["hr@10"] for report in (dense, hashed))
        lines = (folder / "hashed" / stage / "metrics.jsonl").read_text().splitlines()
        last = [json.loads(line) for line in lines if '"train"' in line][-1]
        evicted = sum(count for name, count in last.items() if name.endswith(".evicted"))
        print(f"| {stage} | {one:.4f} | {other:.4f} | {other / one - 1:+.1%} | {evicted} |", flush=True)
        wrong += [] if abs(other / one - 1) <= SHARE and not evicted else [f"hr@10 of {stage}"]
    return wrong


def run(out: Path, overrides: list[str]) -> dict[str, Any]:
    """The report of one run of the demo."""
    command = [str(Path(sys.executable).with_name("pad-dist")), "run", "--config", str(ROOT / "configs" / "demo.yaml")]
    out.mkdir(parents=True, exist_ok=True)
    with (out / "log.txt").open("w") as log:
        done = subprocess.run([*command, "--out", str(out), *overrides], stdout=log, stderr=log, check=False)
    if done.returncode:
        sys.exit(f"the demo failed: see {out}/log.txt")
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


if __name__ == "__main__":
    main()
