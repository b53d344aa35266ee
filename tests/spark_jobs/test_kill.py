"""A rerun whose driver is killed leaves a dataset that reads, and the next one ends exactly."""

import random
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from benchmarks.etl_kill import Moment, survived
from benchmarks.support.builds import checked, fresh_copy
from pad_dist.dataset import versions
from spark_jobs.build_sequences import build_sequences
from tests.support.events import config_for, random_events, write_inputs

pytestmark = pytest.mark.slow


@pytest.fixture
def spark_conf() -> dict[str, str]:
    """Settings that start fast; other cores and partitions than the `spark` of the tests."""
    java = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
    return {"spark.sql.shuffle.partitions": "3", "spark.driver.extraJavaOptions": java}


def test_a_killed_rerun_leaves_the_old_version_and_the_next_rerun_is_exact(
    spark: SparkSession, tmp_path: Path, spark_conf: dict[str, str]
) -> None:
    events = random_events(random.Random(6))
    (tmp_path / "days").mkdir()
    write_inputs(tmp_path, events[:-40])
    (tmp_path / "events.csv").rename(tmp_path / "days" / "1.csv")
    data = {"interactions": f"{tmp_path}/days/*.csv", "spark_master": "local[1]", "spark_conf": spark_conf}
    first = config_for(tmp_path, "first", **data)
    build_sequences(first, spark)
    write_inputs(tmp_path, events[-40:])
    (tmp_path / "events.csv").rename(tmp_path / "days" / "2.csv")
    fresh_copy(first.dataset, tmp_path / "undisturbed")
    build_sequences(config_for(tmp_path, "undisturbed", **data), spark)
    expected = checked(f"{tmp_path}/undisturbed").content_hash()

    rerun = config_for(tmp_path, "killed", **data)
    fresh_copy(first.dataset, tmp_path / "killed")
    moment = Moment(0, "versions/000002-*/sequences/*")
    outcome = survived(rerun, moment, tmp_path / "scratch", expected, lambda config: build_sequences(config, spark))
    assert outcome[1:] == (False, True)
    assert len(versions.published(rerun.dataset)) == 2
