"""Time, memory and disk of a full build of synthetic events, each size in a process of its own on two cores.

    python -m benchmarks.etl_scale --dir DIR [--events 10000000 100000000] [--shards 16 64] [--skew]

Memory is the sum of PSS (resident, shared pages counted once) over the driver's JVM and all
Python processes, sampled every 0.5 s. Inputs stay in DIR for the next time. Exit status 1
when a size passes --limit-gib.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from benchmarks.support.builds import GIB, Measured, checked, run_build
from benchmarks.support.inputs import config_of, skewed, synthetic
from pad_dist.config import Config


def main() -> None:
    """Print what is expected, one line per size and a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="for inputs, kept, and datasets, deleted")
    parser.add_argument("--events", type=int, nargs="+", default=[10_000_000, 100_000_000])
    parser.add_argument("--shards", type=int, nargs="+", default=[16, 64], help="one for each of --events")
    parser.add_argument("--driver-memory", default="5g", help="heap of the JVM")
    parser.add_argument("--limit-gib", type=float, default=12.0)
    parser.add_argument("--skew", action="store_true", help="one user with 1 %% of the events, one item with 10 %%")
    args = parser.parse_args()
    print(
        f"expected: at most {args.limit_gib:g} GiB at any size, and ten times the events in at most 12 times the time"
    )
    shutil.rmtree(args.dir / "work", ignore_errors=True)
    measured = []
    for events, shards in zip(args.events, args.shards, strict=True):
        config = inputs_of(args.dir, events, args.skew, shards, args.driver_memory)
        measured.append(run_build(config, args.dir / "work" / "scratch"))
        counts = checked(config.dataset).counts
        shutil.rmtree(args.dir / "work")
        told = ", ".join(f"{name} {counts[name]:,}" for name in ("raw_events", "users", "items"))
        print(f"{told}: {measured[-1].seconds:.0f} s, {measured[-1].memory / GIB:.1f} GiB", flush=True)
    print("\n| events | shards | s | events/s | memory, GiB | JVM | Python | one Python | Spark's disk, GiB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for events, shards, m in zip(args.events, args.shards, measured, strict=True):
        print(f"| {events:,} | {shards} | {m.seconds:.0f} | {events / m.seconds:,.0f} | {gib(m)} |")
    if len(measured) > 1:
        print(f"\ntime of the last over that of the first: {measured[-1].seconds / measured[0].seconds:.1f}")
    if max(m.memory for m in measured) > args.limit_gib * GIB:
        sys.exit(f"more than {args.limit_gib:g} GiB")


def inputs_of(folder: Path, events: int, skew: bool, shards: int, memory: str) -> Config:
    """Config of a build of that many events into `folder`/work."""
    if skew:
        inputs, _ = skewed(folder, events // 100, events // 10, events - events // 100 - events // 10)
    else:
        inputs = synthetic(folder, events)
    files = f"{inputs}/interactions-*.csv.gz"
    return config_of(folder / "work" / "dataset", files, inputs / "items.csv.gz", shards, memory)


def gib(measured: Measured) -> str:
    """Cells of a table row."""
    sizes = (measured.memory, measured.jvm, measured.python, measured.worker, measured.disk)
    return " | ".join(f"{size / GIB:.2f}" for size in sizes)


if __name__ == "__main__":
    main()
