"""One local Spark for all tests of the Spark jobs."""

from collections.abc import Iterator

import pytest
from pyspark.sql import SparkSession

from pad_dist.config import DataConfig
from spark_jobs.session import spark_session


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """Two cores, few partitions, and settings that suit tiny jobs on a cold JVM."""
    conf = {
        "spark.sql.shuffle.partitions": "2",
        "spark.sql.adaptive.enabled": "false",
        "spark.sql.codegen.wholeStage": "false",
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    }
    session = spark_session(DataConfig(spark_master="local[2]", spark_conf=conf), "tests")
    yield session
    session.stop()
