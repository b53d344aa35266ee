"""What of a failure is told to the user, and what stays a bug."""

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from py4j.clientserver import JavaClient, JavaParameters, PythonParameters
from py4j.java_gateway import GatewayProperty, PythonProxyPool
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
from urllib3.exceptions import ProtocolError

from pad_dist.errors import UserError
from spark_jobs.job import stop_tasks, task_errors

pytestmark = pytest.mark.slow

Task = Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]


def raising(error: Exception) -> Task:
    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        list(batches)
        raise error

    return task


def run_task(spark: SparkSession, task: Task) -> None:
    with task_errors("file:///data"):
        spark.range(1).mapInArrow(task, "id long").collect()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (UserError("items/part-00000.parquet differs"), r"^items/part-00000\.parquet differs$"),
        (OSError(errno.ENOSPC, "No space left on device"), r"OSError: \[Errno 28\] No space left on device: free "),
        (ConnectionResetError(errno.ECONNRESET, "reset"), r"ConnectionResetError: \[Errno 104\] reset: free space or"),
        (ProtocolError("503\nslow down"), r"urllib3\.exceptions\.ProtocolError: 503: free space or mend the store"),
    ],
    ids=["user", "disk", "network", "client"],
)
def test_what_a_task_tells_of_its_store_is_one_line(spark: SparkSession, error: Exception, told: str) -> None:
    with pytest.raises(UserError, match=told) as raised:
        run_task(spark, raising(error))
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError), task_errors("file:///data"):
        raise error


def test_stopping_waits_for_tasks_beside_a_failed_one(spark: SparkSession, tmp_path: Path) -> None:
    started, late = tmp_path / "started", tmp_path / "late"

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        if 0 in [number for batch in batches for number in batch["id"].to_pylist()]:
            while not started.exists():
                time.sleep(0.01)
            time.sleep(0.5)
            raise ValueError("first")
        started.touch()
        time.sleep(1)
        late.touch()
        yield from ()

    with pytest.raises(PySparkException, match="first"):
        spark.range(0, 2, 1, 2).mapInArrow(task, "id long").collect()
    stop_tasks(spark)
    written = late.exists()
    time.sleep(1.2)
    assert late.exists() == written


def die(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    os._exit(9)


@pytest.mark.parametrize(
    ("task", "shown"),
    [
        (raising(KeyError("item_key")), "KeyError: 'item_key'"),
        (raising(AssertionError("OSError: of ours")), "AssertionError"),
        (raising(pa.ArrowInvalid("No space")), "ArrowInvalid: No space"),
        (die, "Python worker exited unexpectedly"),
    ],
    ids=["key", "assertion", "arrow", "crash"],
)
def test_a_bug_in_a_task_stays_a_bug(spark: SparkSession, task: Task, shown: str) -> None:
    with pytest.raises((PySparkException, Py4JError), match=shown):
        run_task(spark, task)
    for bug in (KeyError("item_key"), pa.ArrowInvalid("No space")):
        with pytest.raises(type(bug)), task_errors("file:///data"):
            raise bug


def test_a_jvm_that_has_died_is_no_failing_store() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    connections = GatewayProperty(auto_field=False, pool=PythonProxyPool())
    client = JavaClient(JavaParameters(port=port), PythonParameters(), connections)
    with pytest.raises(ConnectionRefusedError), task_errors("file:///data"):
        client.send_command("x")
