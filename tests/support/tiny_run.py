"""A run config on generated data, small enough to be trained in a test."""

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Suits tiny jobs on a cold JVM.
SPARK = {
    "spark.sql.shuffle.partitions": "2",
    "spark.sql.codegen.wholeStage": "false",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
}
RUN: dict[str, Any] = {
    "name": "tiny",
    "data": {
        "spark_conf": SPARK,
        "synthetic": {"events": 1500, "users": 150, "items": 200},
        "columns": {"time": "timestamp", "rating": "rating"},
        "shards": 8,
    },
    "model": {"dim": 16, "max_length": 10},
    "training": {"batch_size": 32, "loss": {"negatives": 50}},
    "pretrain": {"epochs": 2},
    "align": {"epochs": 1, "item_share": 0.5},
    "disentangle": {"epochs": 1, "freeze": ["id", "aligned"], "expert_loss": 1.0},
}
