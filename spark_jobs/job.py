"""The command line that the Spark jobs share."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from pyspark.sql import SparkSession

from pad_dist.config import Config
from pad_dist.config_file import load_config
from pad_dist.entry import user_errors
from spark_jobs.session import spark_session

Job = Callable[[Config, SparkSession], str]
"""Does the work and returns the line to print."""


def run_job(name: str, description: str, job: Job, arguments: list[str] | None) -> None:
    """Read the config and run the job in a session.

    A user's mistake is one line and exit status 2.
    """
    parser = argparse.ArgumentParser(prog=name, description=description)
    parser.add_argument("--config", required=True, help="run config (YAML)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args(arguments)
    with user_errors():
        config = load_config(options.config, options.overrides)
        print(job(config, spark_session(config.data, f"{name} {config.name}")))
