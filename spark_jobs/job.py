"""How the Spark jobs begin and end."""

from __future__ import annotations

from collections.abc import Callable

from pyspark.sql import SparkSession

from pad_dist.config import Config
from pad_dist.config_file import config_from_arguments
from pad_dist.entry import user_errors
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
