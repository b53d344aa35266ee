"""One way to get a Spark session, in-process or under spark-submit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from pyspark.sql import SparkSession

import pad_dist
from pad_dist.config import DataConfig
from pad_dist.errors import UserError

MIN_JAVA = 17


def spark_session(data: DataConfig, app: str) -> SparkSession:
    """A session with Arrow on, UTC, case-sensitive columns and quiet logs.

    In-process it runs on `data.spark_master`; under spark-submit the master given
    there wins. `data.spark_conf` is applied last, over the settings here.

    Raises:
        UserError: Java is missing or too old.
    """
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ
    local = not submitted and data.spark_master.startswith("local")
    conf = {
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.caseSensitive": "true",
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.ui.showConsoleProgress": str(sys.stderr.isatty()).lower(),
        "spark.log.level": "WARN",
    }
    if not submitted:
        require_java()
    if local:
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
    return builder.getOrCreate()


def require_java() -> None:
    """Check that Spark will find Java 17 or newer.

    Raises:
        UserError: it is missing or older; the message says what to install.
    """
    fix = (
        "install it (Debian, Ubuntu: apt-get install openjdk-17-jre-headless; "
        "macOS: brew install openjdk@17; conda: conda install openjdk=17) or point JAVA_HOME at it"
    )
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home, "bin", "java")) if home else shutil.which("java")
    if java is None or not os.access(java, os.X_OK):
        raise UserError(
            f"Spark needs Java {MIN_JAVA} or newer and found none{f' in JAVA_HOME={home}' if home else ''}: {fix}"
        )
    text = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(?:1\.)?(\d+)', text)
    if version is None or int(version[1]) < MIN_JAVA:
        found = f"version {version[1]}" if version else "no version"
        raise UserError(f"Spark needs Java {MIN_JAVA} or newer and {java} reports {found}: {fix}")
