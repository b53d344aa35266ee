"""What a record keeps of a run, and when it is one of another run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pad_dist import storage
from pad_dist.compare.config import Comparison
from pad_dist.compare.jobs import Job
from pad_dist.compare.records import is_recorded, read_record, write_record
from pad_dist.compare.results import RunResult
from pad_dist.config import Config
from pad_dist.errors import UserError
from pad_dist.evaluation.target_ranks import MOST, SplitTargetRanks, TargetRankFile

USERS = 500
HASH = "ab" * 32


def comparison(folder: Path) -> Comparison:
    values: dict[str, Any] = {"datasets": {"shop": {"config": "c"}}, "methods": {"mine": {"role": "ours"}}}
    return Comparison.model_validate({**values, "out": f"{folder}/out", "results": f"{folder}/results", "seeds": [1]})


def job(folder: Path, **changes: Any) -> Job:
    config = Config.model_validate({"name": "tiny", "out": f"{folder}/out", "method": "id", **changes})
    return Job("shop", "mine", config.seed, "c.yaml", (), (), config)


def finished(seed: int, dataset: str = HASH) -> RunResult:
    random = np.random.default_rng(seed)

    def split() -> SplitTargetRanks:
        target_ranks = random.choice([1, 2, 9, 10, 11, 4000, MOST], USERS).astype(np.int32)
        return SplitTargetRanks(
            {"id": target_ranks, "popularity": target_ranks},
            random.integers(0, 900, USERS).astype(np.int32),
            random.integers(1, 11, USERS).astype(np.int32),
        )

    report = {"dataset": {"users": USERS, "hash": dataset}, "environment": {"stages": {"pretrain": {}}, "commit": "c"}}
    splits = {"valid": split(), "test": split()}
    target_ranks = TargetRankFile(splits, "m", dataset)
    return RunResult(seed, target_ranks, "id", report, {"pretrain": 3.5}, {"pretrain": {}}, None)


@pytest.mark.parametrize(("seed", "cold"), [(0, 5), (1, 0), (2, 400)])
def test_a_record_gives_every_users_metrics_and_the_class_of_every_target(tmp_path: Path, seed: int, cold: int) -> None:
    this, run = job(tmp_path, seed=1, evaluation={"cold_max_frequency": cold}), finished(seed)
    write_record(comparison(tmp_path), this, run)
    read = read_record(comparison(tmp_path), this)
    assert read is not None
    for split, before in run.target_ranks.splits.items():
        after = read.target_ranks.splits[split]
        for metric in ("hr@10", "ndcg@10"):
            assert (read.per_user(split, metric) == run.per_user(split, metric)).all()
        assert (after.bins == before.bins).all() and list(after.by_scorer) == ["id"]
        for low, high in ((0, 0), (1, cold), (cold + 1, 10**9)):
            assert (
                ((after.frequency >= low) & (after.frequency <= high))
                == ((before.frequency >= low) & (before.frequency <= high))
            ).all()
    assert (read.seed, read.scorer, read.timings, list(read.stages)) == (1, "id", {"pretrain": 3.5}, ["pretrain"])
    assert read.report["dataset"] == run.report["dataset"] and read.forgetting is None


def test_a_record_of_other_settings_or_of_earlier_data_is_none(tmp_path: Path) -> None:
    here = comparison(tmp_path)
    assert not is_recorded(here, job(tmp_path))
    write_record(here, job(tmp_path), finished(0))
    assert is_recorded(here, job(tmp_path))
    # What the stages of the method do not read changes nothing, nor does where it runs.
    assert is_recorded(here, job(tmp_path, align={"gamma": 0.7}, training={"world_size": 2}, text={"batch_size": 9}))
    assert is_recorded(here, job(tmp_path, text={"transform": "none"}))
    assert is_recorded(here, job(tmp_path, model={"item_knn": {"decay": 0.5}, "aligned": {"id_dropout": 0.5}}))
    assert is_recorded(here, job(tmp_path, data={"interactions": "elsewhere.csv", "spark_master": "local[1]"}))
    for change in (
        {"pretrain": {"lr": 0.5}},
        {"model": {"dim": 32}},
        {"model": {"backbone": {"blocks": 2}}},
        {"warm_start": "elsewhere"},
        {"evaluation": {"cold_max_frequency": 3}},
        {"data": {"min_interactions": 6}},
        {"data": {"synthetic": {"items": 300}}},
    ):
        assert not is_recorded(here, job(tmp_path, **change))
    texts = job(tmp_path, method="text", text={"batch_size": 9})
    write_record(here, texts, finished(0))
    assert is_recorded(here, job(tmp_path, method="text"))
    assert not is_recorded(here, job(tmp_path, method="text", text={"transform": "none"}))
    write_record(here, job(tmp_path), finished(0))
    kept = storage.read_json(f"{here.results}/shop/data.json")
    storage.write_json(f"{here.results}/shop/data.json", {**kept, "dataset": "cd" * 32})
    assert not is_recorded(here, job(tmp_path))


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    here, this = comparison(tmp_path), job(tmp_path, seed=1)
    write_record(here, this, finished(0))
    url = f"{here.results}/shop/mine/seed-1.json"
    record = storage.read_json(url)
    whole = finished(0).target_ranks.splits["test"]
    one_missing = SplitTargetRanks({"id": whole.by_scorer["id"][1:]}, whole.frequency, whole.bins)
    short = TargetRankFile({"test": one_missing}, "m", HASH)
    write_record(here, this, replace(finished(0), target_ranks=short))
    cut = {**record, "target_ranks": {"test": record["target_ranks"]["test"][:-8]}}
    for damaged in (storage.read_json(url), cut, {"settings": record["settings"]}):
        storage.write_json(url, damaged)
        with pytest.raises(UserError, match=r"seed-1.json.* is damaged .*: remove it"):
            read_record(here, this)
