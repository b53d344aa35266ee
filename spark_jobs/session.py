"""Get a Spark session, in-process or under spark-submit, and have it cache frames."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path

from py4j.protocol import Py4JError, Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession

import pad_dist
from pad_dist.config import DataConfig
from pad_dist.errors import UserError
from pad_dist.runtime.doctor import check_java

_LOCAL_MASTERS = ("local", "spark://127.0.0.1:", "spark://localhost:")
"""Prefixes of masters whose executors run on this machine."""


def spark_session(data: DataConfig, app: str) -> SparkSession:
    """A session with Arrow on, UTC, case-sensitive columns and quiet logs.

    In-process it runs on `data.spark_master`; under spark-submit the command's master
    wins. `data.spark_conf` overrides the settings made here.

    Raises:
        UserError: Java is missing or too old; or Spark refuses the settings.
    """
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ
    is_local = not submitted and data.spark_master.startswith(_LOCAL_MASTERS)
    conf = {
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.caseSensitive": "true",
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.ui.showConsoleProgress": str(sys.stderr.isatty()).lower(),
        "spark.log.level": "WARN",
    }
    if not submitted:
        require_java()
    if is_local:
        # The workers need this interpreter and this checkout, whether or not they are on PATH and PYTHONPATH.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
        conf |= {
            "spark.executorEnv.PYTHONPATH": str(Path(pad_dist.__file__).parents[1]),
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.ui.enabled": "false",
            "spark.sql.shuffle.partitions": "8",
            # A failed task reaches the caller as an exception; its Java trace would bury the one clear line.
            "spark.log.level": "OFF",
        }
    builder = SparkSession.builder.appName(app).config(map={**conf, **data.spark_conf})
    if not submitted:
        builder = builder.master(data.spark_master)
    try:
        session = builder.getOrCreate()
        # A new session reads its SQL settings late: set them, so that a bad value is reported here.
        for key, value in data.spark_conf.items():
            if session.conf.isModifiable(key):
                session.conf.set(key, value)
    except (Py4JError, PySparkException) as error:
        keys = ", ".join(data.spark_conf) or "empty"
        raise UserError(
            f"Spark does not start with data.spark_master={data.spark_master} and data.spark_conf ({keys}), "
            f"mend these: {_first_line(error)}"
        ) from error
    return session


def persisted(frame: DataFrame, cached: ExitStack) -> DataFrame:
    """The frame, cached by Spark until the block of `cached` ends."""
    cached.callback(frame.unpersist)
    return frame.persist()


def _first_line(error: Py4JError | PySparkException) -> str:
    """What Spark says, without Py4J's preamble and the Java trace."""
    text = error.java_exception.toString() if isinstance(error, Py4JJavaError) else str(error)
    return str(text).strip().split("\n")[0]


def require_java() -> None:
    """Check that Spark will find Java 17 or newer.

    Raises:
        UserError: it is missing or older; the message says what to install.
    """
    java = check_java(os.environ)
    if not java.ok:
        raise UserError(f"Spark needs {java.name}: {java.actual}: {java.fix}")
