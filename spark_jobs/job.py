"""How the Spark jobs begin and end."""

from __future__ import annotations

import builtins
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from types import FrameType

from py4j.protocol import Py4JError, Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from pad_dist.config import Config
from pad_dist.config.load import config_from_arguments
from pad_dist.errors import UserError
from pad_dist.runtime.entry import user_errors
from spark_jobs.session import spark_session

Job = Callable[[Config, SparkSession], str]
"""Does the work and returns the line to print."""

_TERMINATED = 128 + signal.SIGTERM
_STOP_SECONDS = 10.0

_CLIENTS = "fsspec s3fs gcsfs adlfs ossfs botocore aiobotocore aiohttp azure google requests urllib3 paramiko"
"""Packages by which fsspec reaches stores; some raise errors that are not OSErrors."""
_OS_ERRORS = [name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, OSError)]
_TOLD = re.compile(r"^(?:\w+\.)*UserError: (.*)", re.MULTILINE)
_OF_TASK = re.compile(rf"^((?:{'|'.join(_OS_ERRORS)})|(?:{'|'.join(_CLIENTS.split())})\.[\w.]+): (.*)", re.MULTILINE)
# Without EOFException and java.net: the JVM raises those when a Python worker has died.
_OF_SPARK = re.compile(
    r"\b(?:java\.io\.(?:IOException|FileNotFoundException)|java\.nio\.file\.\w+Exception"
    r"|org\.apache\.hadoop\.fs\.[\w.$]+(?:Exception|Error)): (.*)"
)


def run_job(name: str, description: str, job: Job, arguments: list[str] | None) -> None:
    """Read the config and run the job in a session.

    A user's mistake is one line and exit status 2; SIGTERM ends the job as Ctrl-C does, so that it cleans up.
    """
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        with user_errors():
            config, _ = config_from_arguments(description, arguments)
            print(job(config, spark_session(config.data, f"{name} {config.name}")))
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(*_: int | FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second signal would interrupt the clean-up
    sys.exit(_TERMINATED)


@contextmanager
def task_errors(dataset: str) -> Iterator[None]:
    """Turn a task's UserError, or the failure of a store or disk, into one UserError.

    Any other exception is a bug and passes unchanged.
    """
    try:
        yield
    except (PySparkException, Py4JJavaError) as error:
        text = str(error)
        if told := _TOLD.search(text):
            raise UserError(told[1]) from None
        if failed := _OF_TASK.search(text):
            raise _failure(dataset, f"{failed[1]}: {failed[2]}: free space or mend the store") from None
        if failed := _OF_SPARK.search(text):
            places = "its store and in spark.local.dir (set another one in data.spark_conf)"
            raise _failure(dataset, f"Spark: {failed[1].strip()}: free space in {places}") from None
        raise
    except Exception as error:
        if not _of_store(error):
            raise
        line = " ".join(traceback.format_exception_only(error)[-1].split())
        raise _failure(dataset, f"{line}: free space or mend the store") from None


def _failure(dataset: str, reason_and_fix: str) -> UserError:
    return UserError(
        f"{dataset}: the job could not read or write a file, published versions stay as they are: "
        f"{reason_and_fix}, then run it again"
    )


def _of_store(error: Exception) -> bool:
    if not isinstance(error, OSError):
        return type(error).__module__.partition(".")[0] in _CLIENTS.split()
    frames = [frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(error.__traceback__)]
    return not frames[-1].startswith("py4j")  # py4j's socket: the JVM has died


def stop_tasks(spark: SparkSession) -> None:
    """Cancel all jobs and wait until no task runs: other tasks of a failed job still write for a moment."""

    def stop() -> None:
        context = spark.sparkContext
        with suppress(Py4JError, OSError):  # the JVM has died, and its tasks with it
            context.cancelAllJobs()
            tracker = context._jsc.sc().statusTracker()
            deadline = time.monotonic() + _STOP_SECONDS
            while time.monotonic() < deadline and any(e.numRunningTasks() for e in tracker.getExecutorInfos()):
                time.sleep(0.02)

    # A new thread has a new connection to the JVM: this thread's connection may be waiting for an answer.
    thread = Thread(target=stop, daemon=True)
    thread.start()
    thread.join(2 * _STOP_SECONDS)
