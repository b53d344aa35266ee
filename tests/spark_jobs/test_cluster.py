"""A real standalone cluster on loopback gives what local mode gives, also when a worker dies in mid-job."""

import random
from pathlib import Path

from pyspark.sql import SparkSession

from benchmarks.etl_cluster import on_cluster, run_with_a_worker_killed
from benchmarks.support.builds import checked, run_build
from benchmarks.support.cluster import standalone_cluster
from spark_jobs.build_sequences import build_sequences
from tests.support.events import config_for, random_events, write_inputs


def test_a_cluster_gives_the_content_of_local_mode_also_when_a_worker_is_killed(
    spark: SparkSession, tmp_path: Path
) -> None:
    write_inputs(tmp_path, random_events(random.Random(8)))
    java = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
    conf = {f"spark.{who}.extraJavaOptions": java for who in ("driver", "executor")}
    conf["spark.sql.shuffle.partitions"] = "3"
    expected = build_sequences(config_for(tmp_path, "local"), spark).content_hash()
    with standalone_cluster(tmp_path / "cluster") as cluster:
        whole, broken = (on_cluster(config_for(tmp_path, name, spark_conf=conf), cluster) for name in ("a", "b"))
        run_build(whole, tmp_path / "scratch", timeout=120)
        assert all(len(list(tmp_path.glob(f"cluster/work-{n}/app-*/*/stderr"))) == 1 for n in range(2))
        run_with_a_worker_killed(broken, cluster, tmp_path / "scratch")
        assert [worker.poll() is None for worker in cluster.workers] == [False, True]
    assert checked(whole.dataset).content_hash() == checked(broken.dataset).content_hash() == expected
