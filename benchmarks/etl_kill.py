"""kill -9 of the driver at random moments of a rerun: what is readable then, and what the next rerun makes of it.

    python -m benchmarks.etl_kill --dir DIR [--moments 20] [--events 200000]

Half of the moments are spread over the whole rerun, half are aimed: a few milliseconds after
a file appears, up to the writing of manifest and pointer. After each kill the current version
must open and every file of it verify; the next rerun must end with the content of an
undisturbed one and no directory of an unpublished version. Exit status 1 otherwise.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.support.builds import Build, checked, fresh_copy, run_build
from benchmarks.support.inputs import SEED, config_of, split_by_time, synthetic
from pad_dist.config import Config
from pad_dist.dataset import versions
from pad_dist.dataset.manifest import Manifest
from spark_jobs.build_sequences import build_sequences
from spark_jobs.session import spark_session

AIMS = (
    "versions/000002-*",
    "versions/000002-*/sequences/*.parquet",
    "versions/000002-*/items/*",
    "versions/000002-*/quality.json",
    "versions/000002-*/manifest.json*",
    "versions/000002-*/manifest.json",
)
"""Files below the dataset, in the order in which a rerun writes them."""


@dataclass(frozen=True)
class Moment:
    """`delay` seconds after the start of the process, or after `file`, a pattern below the dataset, is there."""

    delay: float
    file: str = ""


def main() -> None:
    """Print what is expected, one line per moment and a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="for inputs and the first version, kept")
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    print("expected: the version before (or the new one, if published) opens every time; the next rerun is exact")
    inputs = split_by_time(synthetic(args.dir, args.events), 0.01)
    work = args.dir / "work"
    shutil.rmtree(work, ignore_errors=True)

    def config(dataset: Path, files: str) -> Config:
        return config_of(dataset, f"{inputs}/{files}/*.csv.gz", inputs / "items.csv.gz", 4, "1g")

    first = config(inputs.with_name(f"{inputs.name}-dataset-4"), "base")
    if versions.current(first.dataset) is None:
        run_build(first, work / "scratch")
    rerun = config(work / "dataset", "*")
    fresh_copy(first.dataset, work / "dataset")
    took = run_build(rerun, work / "scratch").seconds
    undisturbed = checked(rerun.dataset).content_hash()
    print(f"a rerun takes {took:.1f} s", flush=True)
    spark = spark_session(rerun.data, "etl_kill")

    rows = []
    for moment in moments(random.Random(args.seed), args.moments, took):
        fresh_copy(first.dataset, work / "dataset")
        when, was_new, exact = survived(
            rerun, moment, work / "scratch", undisturbed, lambda config: build_sequences(config, spark)
        )
        after = f"{moment.delay * 1000:.0f} ms after {moment.file}" if moment.file else "at random"
        published = "new" if was_new else "old"
        rows.append(f"| {when:.2f} | {after} | {published}, whole | {'exact' if exact else 'DIFFERENT'} |")
        print(rows[-1], flush=True)
    shutil.rmtree(work)
    print("\n| s after start | aimed | version found | next rerun |\n|---|---|---|---|")
    print("\n".join(rows))
    failed = sum("DIFFERENT" in row for row in rows)
    print(f"\n{len(rows) - failed} of {len(rows)} exact")
    if failed:
        sys.exit(f"{failed} reruns differ")


def moments(rng: random.Random, count: int, seconds: float) -> list[Moment]:
    """Half of them one in each equal part of a run of that length, half aimed."""
    spread = count - count // 2
    anywhere = [Moment(seconds * (k + rng.random()) / spread) for k in range(spread)]
    return anywhere + [Moment(rng.uniform(0, 0.005), AIMS[-1 - k % len(AIMS)]) for k in range(count // 2)]


def survived(
    rerun: Config, moment: Moment, scratch: Path, expected: str, finish: Callable[[Config], Manifest]
) -> tuple[float, bool, bool]:
    """Start a rerun, kill it, check what can be read, then finish it.

    Args:
        expected: content hash of an undisturbed rerun.
        finish: a rerun to the end.

    Returns:
        Seconds from start to kill, whether the new version was published by then, whether the end is exact.

    Raises:
        UserError: what can be read after the kill does not verify.
    """
    root = Path(rerun.dataset)
    started = time.perf_counter()
    with Build(rerun, scratch) as build:
        while moment.file and not any(root.glob(moment.file)) and build.process.poll() is None:
            time.sleep(0.001)
        until = moment.delay + (time.perf_counter() if moment.file else started)
        time.sleep(max(0.0, until - time.perf_counter()))
        when = time.perf_counter() - started
        build.kill()
    was_new = len(versions.published(rerun.dataset)) == 2
    checked(rerun.dataset)
    finish(rerun)
    only_published = versions.present(rerun.dataset) == versions.published(rerun.dataset)
    return when, was_new, only_published and checked(rerun.dataset).content_hash() == expected


if __name__ == "__main__":
    main()
