"""Java is looked for before Spark starts, and settings that Spark refuses are one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from pad_dist.config import DataConfig
from pad_dist.errors import UserError
from spark_jobs.session import require_java, spark_session

pytestmark = pytest.mark.slow


def fake_java(home: Path, version: str) -> None:
    java = home / "bin" / "java"
    java.parent.mkdir()
    java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2020-01-01' >&2\n")
    java.chmod(0o755)


def test_missing_java_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(UserError, match=r"^Spark needs Java 17 or newer: no java on PATH: .+"):
        require_java()


def test_a_wrong_java_home_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(UserError, match=f"JAVA_HOME has no {tmp_path}/bin/java: .+"):
        require_java()


@pytest.mark.parametrize(("version", "major"), [("1.8.0_392", "8"), ("11.0.2", "11")])
def test_old_java_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, major: str) -> None:
    fake_java(tmp_path, version)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(UserError, match=rf"^Spark needs Java 17 or newer: {major} \({tmp_path}.*JAVA_HOME.+"):
        require_java()


@pytest.mark.parametrize("version", ["17.0.15", "21"])
def test_java_17_and_newer_are_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    fake_java(tmp_path, version)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    require_java()


def test_local_sessions_bind_to_the_loopback_address_and_use_utc(spark: SparkSession) -> None:
    assert spark.conf.get("spark.driver.bindAddress") == "127.0.0.1"
    assert spark.conf.get("spark.sql.session.timeZone") == "UTC"


def test_a_setting_that_spark_refuses_is_one_clear_line(spark: SparkSession) -> None:
    conf = {"spark.sql.shuffle.partitions": "many"}
    with pytest.raises(UserError, match=r"data\.spark_conf .*spark\.sql\.shuffle\.partitions.*'many'") as error:
        spark_session(DataConfig(spark_master="local[2]", spark_conf=conf), "tests")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("data.spark_master=local[x]", "data.spark_master=local[x]"),
        ("data.spark_conf={spark.sql.shuffle.partitions: many}", "data.spark_conf (spark.sql.shuffle.partitions)"),
    ],
)
def test_a_new_session_that_spark_refuses_is_one_clear_line(tmp_path: Path, setting: str, says: str) -> None:
    (tmp_path / "run.yaml").write_text("name: t\n")
    # In a process of its own: here a session is there already.
    command = [sys.executable, "-m", "spark_jobs.build_sequences", "--config", f"{tmp_path}/run.yaml", setting]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("pad-dist: error: Spark does not start with ") and says in line
    assert ("Could not parse Master URL: 'local[x]'" in line) or ("'many'" in line)
