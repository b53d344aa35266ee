"""How the Spark jobs begin and end."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from pad_dist.config import Config
from pad_dist.config_file import config_from_arguments
from pad_dist.entry import user_errors
from pad_dist.errors import UserError
from spark_jobs.session import spark_session

Job = Callable[[Config, SparkSession], str]
"""Does the work and returns the line to print."""


def run_job(name: str, description: str, job: Job, arguments: list[str] | None) -> None:
    """Read the config and run the job in a session.

    A user's mistake is one line and exit status 2.
    """
    with user_errors():
        config, _ = config_from_arguments(description, arguments)
        print(job(config, spark_session(config.data, f"{name} {config.name}")))


@contextmanager
def task_errors(what: str) -> Iterator[None]:
    """Turn a task's UserError, and a store that fails while `what` is written, into one UserError here."""
    try:
        yield
    except (PySparkException, Py4JJavaError, OSError) as error:
        text = str(error)
        if told := re.search(r"UserError: (.*)", text):
            raise UserError(told[1]) from None
        # Python's OSError and Java's IOException say alike when a disk is full.
        if failed := re.search(
            r"(?:OSError|IOException|PermissionError|ConnectionError|Error): (.*(?:Errno|space).*)", text
        ):
            raise UserError(f"{what} cannot be written, what was there stays as it is: {failed[1].strip()}") from None
        if isinstance(error, OSError):
            raise UserError(f"{what} cannot be written, what was there stays as it is: {text}") from None
        raise
