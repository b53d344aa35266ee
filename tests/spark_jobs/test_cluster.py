"""A real standalone cluster on loopback gives what local mode gives, though a worker dies in mid-job."""

import random
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from benchmarks.etl_cluster import on_cluster, run_with_a_worker_killed
from benchmarks.support.builds import checked
from benchmarks.support.cluster import standalone_cluster
from spark_jobs.build_sequences import build_sequences
from tests.support.events import config_for, random_events, write_inputs

pytestmark = pytest.mark.slow


def test_a_cluster_with_a_worker_killed_gives_the_content_of_local_mode(spark: SparkSession, tmp_path: Path) -> None:
    write_inputs(tmp_path, random_events(random.Random(8)))
    java = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
    conf = {f"spark.{who}.extraJavaOptions": java for who in ("driver", "executor")}
    conf["spark.sql.shuffle.partitions"] = "3"
    expected = build_sequences(config_for(tmp_path, "local"), spark).content_hash()
    with standalone_cluster(tmp_path / "cluster") as cluster:
        config = on_cluster(config_for(tmp_path, spark_conf=conf), cluster)
        run_with_a_worker_killed(config, cluster, tmp_path / "scratch")
        assert [worker.poll() is None for worker in cluster.workers] == [False, True]
    assert all(any(tmp_path.glob(f"cluster/work-{n}/app-*/*/stderr")) for n in range(2))
    assert checked(config.dataset).content_hash() == expected
