import random
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from pad_dist.errors import UserError
from spark_jobs.build_sequences import build_sequences
from tests.support.events import config_for, random_events, write_inputs


def test_a_core_that_nothing_is_left_of_is_refused_with_its_settings(spark: SparkSession, tmp_path: Path) -> None:
    write_inputs(tmp_path, random_events(random.Random(1))[:40])
    with pytest.raises(UserError, match=r"40 events read.* 0 left by the k-core of data\.min_interactions=3 and "):
        build_sequences(config_for(tmp_path, min_item_interactions=30), spark)
    assert not list(tmp_path.glob("dataset/versions*/*"))
