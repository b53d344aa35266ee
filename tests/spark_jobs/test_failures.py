"""Disks that fill, stores that fail and builds that are ended: the old version stays, and one line tells."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml
from pyspark.sql import SparkSession

from pad_dist.config import Config
from pad_dist.dataset import versions
from pad_dist.dataset.reader import Dataset
from pad_dist.errors import UserError
from spark_jobs import build_sequences as module
from spark_jobs.build_sequences import build_sequences
from tests.support import failing_store
from tests.support.events import config_for, random_events, write_inputs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EVENTS = random_events(random.Random(1))
LEFT_ALONE = "published versions stay as they are"


@pytest.fixture(scope="module")
def base(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs, and a dataset of one version that lacks the newest file of events."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "events").mkdir()
    for name, part in (("1.csv", EVENTS[:300]), ("2.csv", EVENTS[300:])):
        write_inputs(folder, part)
        (folder / "events.csv").rename(folder / "events" / name)
        if name == "1.csv":
            build_sequences(config_for(folder, interactions=f"{folder}/events"), spark)
    return folder


def copied(base: Path, dataset: Path, url: str | None = None) -> Config:
    """The config that lets a copy of the dataset of `base`, at `url` if that is no plain path, grow."""
    shutil.copytree(base / "dataset", dataset)
    config = config_for(base, interactions=f"{base}/events")
    return config.model_copy(update={"dataset": url or str(dataset)})


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str, str], Path]]:
    """Mounts a file system of some size."""
    mounted: list[Path] = []

    def mount(name: str, size: str) -> Path:
        place = tmp_path / name
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.decode().strip()}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path) -> None:
    try:
        with (disk / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
    except OSError as error:
        assert error.errno == errno.ENOSPC


def test_a_disk_that_fills_at_any_moment_leaves_the_old_version(
    spark: SparkSession,
    base: Path,
    small_disk: Callable[[str, str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = small_disk("disk", "1m")
    config = copied(base, disk / "dataset")
    before = files_of(disk)

    def filling_first(name: str) -> Callable[..., Any]:
        original = getattr(module, name)

        def full(*arguments: Any) -> Any:
            fill(disk)
            return original(*arguments)

        return full

    # In tasks; then in this process.
    for name in ("write_shards", "write_manifest"):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, filling_first(name))
            with pytest.raises(UserError, match=rf"/disk/dataset: .*{LEFT_ALONE}: OSError: \[Errno 28\] No space") as e:
                build_sequences(config, spark)
        assert "\n" not in str(e.value), name
        (disk / "filler").unlink()
        assert files_of(disk) == before, name
        assert len(list((disk / "dataset" / "versions").iterdir())) == 1, name
    build_sequences(config, spark)
    assert Dataset.open(config.dataset).version == versions.published(config.dataset)[1]


@pytest.fixture
def store(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of a directory in a FailingStore, which new Python workers of Spark know as an installed package would be."""
    (tmp_path / "site" / "failing-0.dist-info").mkdir(parents=True)
    (tmp_path / "site" / "failing-0.dist-info" / "METADATA").write_text("Name: failing\nVersion: 0\n")
    (tmp_path / "site" / "failing-0.dist-info" / "entry_points.txt").write_text(
        "[fsspec.specs]\nfailing = tests.support.failing_store:FailingStore\n"
    )
    fsspec.register_implementation("failing", failing_store.FailingStore, clobber=True)
    monkeypatch.setenv("FAILING_STORE", f"{tmp_path}/control.json")
    environment = spark.sparkContext.environment
    path = os.pathsep.join([environment["PYTHONPATH"], f"{tmp_path}/site"])
    added = {"PYTHONPATH": path, "FAILING_STORE": f"{tmp_path}/control.json"}
    before = {name: environment.get(name) for name in added}
    environment.update(added)
    failing_store.fail("")
    yield f"failing://{tmp_path}/bucket/dataset"
    for name, value in before.items():
        if value is None:
            del environment[name]
        else:
            environment[name] = value


def test_a_store_that_fails_at_any_moment_leaves_the_old_version(
    spark: SparkSession, base: Path, tmp_path: Path, store: str
) -> None:
    config = copied(base, tmp_path / "bucket" / "dataset", store)
    before = files_of(tmp_path / "bucket")
    for path in ("sequences/part-00001", r"versions\.json"):
        failing_store.fail(path)
        with pytest.raises(UserError, match=rf"^{store}: .*{LEFT_ALONE}: .*Error: 503 Service .*{path}") as error:
            build_sequences(config, spark)
        assert "\n" not in str(error.value)
        assert files_of(tmp_path / "bucket") == before, path

    # A store that stays down keeps what was written so far; the next build takes that away.
    failing_store.fail("manifest.json", stays=True)
    with pytest.raises(UserError, match="Error: 503 Service Unavailable"):
        build_sequences(config, spark)
    with pytest.raises(UserError, match=rf"{LEFT_ALONE}: .*Error: no answer"):
        build_sequences(config, spark)
    failing_store.fail("")
    assert versions.published(store) == versions.present(store)[:1] != versions.present(store)
    assert before.items() <= files_of(tmp_path / "bucket").items()
    build_sequences(config, spark)
    assert versions.published(store) == versions.present(store)
    assert len(versions.published(store)) == 2


def start(base: Path, dataset: Path, **spark_conf: str) -> subprocess.Popen[str]:
    """The command on the inputs of `base`."""
    conf = {"spark.sql.shuffle.partitions": "2", "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1"}
    data = config_for(base, interactions=f"{base}/events", spark_master="local[2]").data
    values = data.model_dump(exclude_defaults=True, mode="json") | {"spark_conf": conf | spark_conf}
    run = dataset.parent / "run.yaml"
    run.write_text(yaml.safe_dump({"name": "t", "dataset": str(dataset), "data": values}))
    return subprocess.Popen(
        [sys.executable, "-m", "spark_jobs.build_sequences", "--config", str(run)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_no_space_for_sparks_own_files_is_one_line(
    base: Path, tmp_path: Path, small_disk: Callable[[str, str], Path]
) -> None:
    dataset = tmp_path / "dataset"
    copied(base, dataset)
    ended = start(base, dataset, **{"spark.local.dir": str(small_disk("scratch", "32k"))})
    _, errors = ended.communicate(timeout=120)
    assert ended.returncode == 2, errors
    (line,) = [line for line in errors.splitlines() if "rror" in line or "xception" in line]
    assert line.startswith(f"pad-dist: error: file://{dataset}: ")
    assert f"{LEFT_ALONE}: Spark: No space left on device: free space in its store and in spark.local.dir" in line
    assert files_of(dataset) == files_of(base / "dataset")


def test_a_terminated_build_takes_its_files_with_it(base: Path, tmp_path: Path) -> None:
    build = start(base, tmp_path / "dataset")
    deadline = time.monotonic() + 100
    while not list(tmp_path.glob("dataset/versions/*/*/*")) and build.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    build.send_signal(signal.SIGTERM)
    _, errors = build.communicate(timeout=60)
    assert build.returncode == 128 + signal.SIGTERM, errors
    assert "Traceback" not in errors
    assert not list(tmp_path.glob("dataset/*/*"))
