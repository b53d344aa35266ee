"""What the ETL sets aside, what it refuses, and that a failure leaves the old dataset."""

import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from pad_dist.data.manifest import read_manifest
from pad_dist.errors import UserError
from spark_jobs.build_sequences import build_sequences, main
from tests.support.events import config_for, random_events, write_inputs


def test_unreadable_rows_are_counted_and_set_aside(spark: SparkSession, tmp_path: Path) -> None:
    events = random_events(random.Random(1))
    write_inputs(tmp_path, events)
    clean = build_sequences(config_for(tmp_path), spark)
    bad = ["u1,i05", "u1,i05,1,5,6", ",i05,1,5", "u1, ,1,5", "u1,i05,,5", "u1,i05,yesterday,5"]
    with (tmp_path / "events.csv").open("a") as file:
        file.write("\n".join(bad) + "\n")
    with (tmp_path / "items.csv").open("a") as file:
        file.write(",no key\n")
    manifest = build_sequences(config_for(tmp_path, max_rejected_share=0.1), spark)
    assert manifest.rejected == {
        "interactions: item is blank": 1,
        "interactions: line is corrupt": 2,
        "interactions: time is blank": 1,
        "interactions: time is not a number": 1,
        "interactions: user is blank": 1,
        "items: item is blank": 1,
    }
    assert manifest.groups == clean.groups
    assert manifest.counts["raw_events"] == len(events) + len(bad)
    lines = (tmp_path / "dataset" / "rejected" / "interactions.jsonl").read_text().splitlines()
    assert {"reason": "line is corrupt", "row": "u1,i05,1,5,6"} in map(json.loads, lines)
    assert len(lines) == len(bad)
    # Once the input is mended, nothing stays set aside.
    write_inputs(tmp_path, events)
    assert build_sequences(config_for(tmp_path), spark).content_hash() == clean.content_hash()
    assert not list((tmp_path / "dataset" / "rejected").iterdir())


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_too_many_unreadable_rows_fail_and_leave_the_old_dataset(spark: SparkSession, tmp_path: Path) -> None:
    events = random_events(random.Random(1))[:199]
    write_inputs(tmp_path, events)
    build_sequences(config_for(tmp_path), spark)
    before = files_of(tmp_path / "dataset")
    (tmp_path / "events.csv").write_text((tmp_path / "events.csv").read_text() + "u1,i05,soon,5\n")
    build_sequences(config_for(tmp_path, max_rejected_share=0.005), spark)
    with pytest.raises(
        UserError,
        match=r"^1 of 200 rows \(0\.5%\) of .*events\.csv are unreadable \(time is not a number: 1\), more than "
        r"data\.max_rejected_share=0\.004 allows: see .*dataset/rejected/interactions\.jsonl",
    ):
        build_sequences(config_for(tmp_path, max_rejected_share=0.004), spark)
    after = files_of(tmp_path / "dataset")
    row = json.loads(after.pop("rejected/interactions.jsonl"))
    assert json.loads(row["row"])["time"] == "soon"
    assert after.keys() == before.keys()
    assert read_manifest(f"{tmp_path}/dataset", "build").rejected == {"interactions: time is not a number": 1}
    assert not (tmp_path / "dataset.staging").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"min_rating": 6}, r"\d+ events read, 0 of them unreadable, 0 left by data\.min_rating=6$"),
        (
            {"min_rating": 5, "min_interactions": 50},
            r", 87 left by data.min_rating=5, 0 left by data.min_interactions=50 \(the longest history has \d ev",
        ),
        ({"interactions": "{}/none.csv"}, r"none\.csv does not exist; .* holds events\.csv, items\.csv$"),
        ({"items": "{}/none.csv"}, r"none\.csv does not exist"),
        ({"interactions": "{}/cut.csv.gz"}, r"cut\.csv\.gz cannot be read, .* is truncated"),
        (
            {"columns": {"user": "customer"}},
            r"no column 'customer'; it has user, item, time, rating: set data\.columns$",
        ),
        ({"columns": {"text": "name"}}, r"items\.csv has no column 'name'; it has item, title"),
        ({"interactions": ""}, r"data\.interactions is not set"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    spark: SparkSession, tmp_path: Path, data: dict[str, Any], message: str
) -> None:
    write_inputs(tmp_path, random_events(random.Random(2)))
    if "cut" in str(data):
        packed = gzip.compress((tmp_path / "events.csv").read_bytes())
        (tmp_path / "cut.csv.gz").write_bytes(packed[: len(packed) // 2])
    filled = {key: value.format(tmp_path) if isinstance(value, str) else value for key, value in data.items()}
    before = files_of(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        build_sequences(config_for(tmp_path, **filled), spark)
    assert "\n" not in str(error.value)
    assert files_of(tmp_path) == before
    assert not (tmp_path / "dataset").exists()


def test_a_failure_while_writing_leaves_the_old_dataset_whole(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_inputs(tmp_path, random_events(random.Random(4)))
    build_sequences(config_for(tmp_path), spark)
    before = files_of(tmp_path)

    def fail(*_: object) -> None:
        assert list((tmp_path / "dataset.staging" / "items").iterdir())
        raise OSError("no space left on device")

    monkeypatch.setattr("spark_jobs.build_sequences.write_sequences", fail)
    with pytest.raises(OSError, match="no space left"):
        build_sequences(config_for(tmp_path), spark)
    assert files_of(tmp_path) == before
    assert not (tmp_path / "dataset.staging").exists()


def test_the_command_prints_the_counts_or_one_error_line(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_inputs(tmp_path, random_events(random.Random(2)))
    config = tmp_path / "run.yaml"
    config.write_text(f"name: t\ndataset: {tmp_path}/dataset\ndata: {{interactions: {tmp_path}/events.csv}}\n")
    # The session is shared: its other settings must stay.
    few = "data.spark_conf={spark.sql.shuffle.partitions: '2'}"
    arguments = ["--config", str(config), f"data.items={tmp_path}/items.csv", few]
    main(arguments)
    assert "users" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "data.min_interactions=40"])
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("pad-dist: error: no history is left of")


@pytest.mark.parametrize("folder", ["items", "sequences", "text", "rejected"])
@pytest.mark.parametrize("name", ["interactions", "items"])
def test_an_input_in_a_folder_that_the_build_replaces_is_refused(
    spark: SparkSession, tmp_path: Path, folder: str, name: str
) -> None:
    write_inputs(tmp_path, random_events(random.Random(2)))
    build_sequences(config_for(tmp_path), spark)
    inside = tmp_path / "dataset" / folder / "raw"
    inside.mkdir(parents=True)
    (inside / "own.csv").write_text("user,item,time,rating\n")
    before = files_of(tmp_path)
    for url in (f"{inside}/own.csv", str(inside), os.path.relpath(inside), f"file://{tmp_path}/x/../dataset/{folder}"):
        with pytest.raises(UserError, match=rf"^data\.{name}=.* lies in .*dataset/{folder}.*set dataset to") as error:
            build_sequences(config_for(tmp_path, **{name: url}), spark)
        assert "\n" not in str(error.value)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("folder", ["items", "sequences"])
@pytest.mark.parametrize("file", ["2023.csv", "part-00000.parquet", "deep/part-00000.parquet"])
def test_a_folder_of_other_data_is_not_replaced(spark: SparkSession, tmp_path: Path, folder: str, file: str) -> None:
    write_inputs(tmp_path, random_events(random.Random(2)))
    other = tmp_path / "dataset" / folder / file
    other.parent.mkdir(parents=True)
    pq.write_table(pa.table({"item_key": ["theirs"]}), other)
    before = files_of(tmp_path)
    with pytest.raises(UserError, match=rf"dataset/{folder} .*would be deleted: set dataset to another") as error:
        build_sequences(config_for(tmp_path), spark)
    assert "\n" not in str(error.value)
    assert files_of(tmp_path) == before


def test_a_dataset_place_that_is_a_file_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    write_inputs(tmp_path, random_events(random.Random(2)))
    (tmp_path / "dataset").write_text("mine")
    with pytest.raises(UserError, match=r"dataset is a file: set dataset to a directory$"):
        build_sequences(config_for(tmp_path), spark)
    assert (tmp_path / "dataset").read_text() == "mine"


def test_what_a_failed_run_left_is_built_over(spark: SparkSession, tmp_path: Path) -> None:
    write_inputs(tmp_path, random_events(random.Random(2)))
    manifest = build_sequences(config_for(tmp_path), spark)
    whole = files_of(tmp_path)
    dataset = tmp_path / "dataset"
    # Killed between the moves: new items, old or no sequences, no manifest, a staging directory.
    (dataset / "manifest.json").unlink()
    for file in (dataset / "sequences").iterdir():
        file.unlink()
    (dataset / "sequences").rmdir()
    (tmp_path / "dataset.staging" / "sequences").mkdir(parents=True)
    (dataset / "rejected").mkdir(exist_ok=True)
    assert build_sequences(config_for(tmp_path), spark) == manifest
    assert files_of(tmp_path) == whole
