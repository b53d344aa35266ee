"""The same build on other cores and partitions, on a standalone cluster, and with a worker killed in mid-job.

    python -m benchmarks.etl_cluster --dir DIR [--events 200000]

The cluster is a master and two workers in processes of their own on loopback, one core each,
out of the installed pyspark. Inputs stay in DIR. Exit status 1 when a content hash differs.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from benchmarks.support.builds import Build, checked, run_build
from benchmarks.support.cluster import Cluster, standalone_cluster
from benchmarks.support.inputs import config_of, synthetic
from pad_dist.config import Config

LOCAL = [("local[1]", 1), ("local[2]", 3), ("local[2]", 8)]
"""Masters and numbers of shuffle partitions."""


def main() -> None:
    """Print what is expected, one line per build and a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="for inputs, kept")
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--shards", type=int, default=8)
    args = parser.parse_args()
    print("expected: one content hash")
    inputs = synthetic(args.dir, args.events)
    work = args.dir / "work"
    shutil.rmtree(work, ignore_errors=True)
    rows: list[tuple[str, float, str]] = []

    def config(name: str) -> Config:
        files = f"{inputs}/interactions-*.csv.gz"
        return config_of(work / name, files, inputs / "items.csv.gz", args.shards, "1g")

    def tell(what: str, seconds: float, dataset: str) -> None:
        rows.append((what, seconds, checked(dataset).content_hash()))
        print(f"{what}: {seconds:.1f} s, {rows[-1][2][:12]}", flush=True)

    for number, (master, partitions) in enumerate(LOCAL):
        conf = {"spark.sql.shuffle.partitions": str(partitions)}
        local = with_spark(config(f"local-{number}"), master, conf)
        tell(f"{master}, {partitions} partitions", run_build(local, work / "scratch").seconds, local.dataset)
    with standalone_cluster(work / "cluster") as cluster:
        whole = on_cluster(config("cluster"), cluster)
        tell("two workers", run_build(whole, work / "scratch").seconds, whole.dataset)
        broken = on_cluster(config("broken"), cluster)
        tell("two workers, one killed", run_with_a_worker_killed(broken, cluster, work / "scratch"), broken.dataset)
    shutil.rmtree(work)
    print("\n| where | s | content hash |\n|---|---|---|")
    print("\n".join(f"| {what} | {seconds:.1f} | {content[:16]} |" for what, seconds, content in rows))
    if len({content for _, _, content in rows}) > 1:
        sys.exit("content hashes differ")


def on_cluster(config: Config, cluster: Cluster) -> Config:
    """The same build there; it begins when every worker has its executor."""
    conf = {
        "spark.executor.memory": "640m",
        "spark.scheduler.minRegisteredResourcesRatio": "1.0",
        "spark.cores.max": str(len(cluster.workers)),
    }
    return with_spark(config, cluster.master, conf)


def with_spark(config: Config, master: str, conf: dict[str, str]) -> Config:
    """The same build with another master and more settings of Spark."""
    update = {"spark_master": master, "spark_conf": config.data.spark_conf | conf}
    return config.model_copy(update={"data": config.data.model_copy(update=update)})


def run_with_a_worker_killed(config: Config, cluster: Cluster, scratch: Path) -> float:
    """Build, and kill worker 0 while it runs Python tasks, when the first file of the version is there; seconds.

    Raises:
        RuntimeError: the build fails, or that moment never comes.
    """
    version = Path(config.dataset) / "versions"
    with Build(config, scratch) as build:
        started = time.perf_counter()
        while not (any(version.glob("*/*/*")) and cluster.python_workers(0)):
            if build.process.poll() is not None:
                raise RuntimeError("the build ended before a worker could be killed")
            time.sleep(0.05)
        cluster.kill_worker(0)
        killed = time.perf_counter() - started
        return killed + build.finish(timeout=600).seconds


if __name__ == "__main__":
    main()
