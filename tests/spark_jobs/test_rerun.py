"""What a rerun decides to read."""

from typing import Any

import pytest

from pad_dist.config import DataConfig
from pad_dist.dataset.lineage import settings_of
from pad_dist.dataset.manifest import Manifest
from pad_dist.errors import UserError
from spark_jobs.rerun import plan

DATA = DataConfig(interactions="/raw/*.csv", items="/raw/items.csv")


def lineage(files: dict[str, str], data: DataConfig = DATA, **inputs: dict[str, str]) -> dict[str, Any]:
    names = ("interactions", "items", "erase_users", "erase_items")
    return {
        "urls": {name: getattr(data, name) for name in names},
        "inputs": {"interactions": files, "items": {"items.csv": "1"}, "erase_users": {}, "erase_items": {}, **inputs},
        "settings": settings_of(data),
    }


def version(**made_from: Any) -> Manifest:
    return Manifest(counts={}, parameters={}, groups={}, lineage=made_from)


BEFORE = version(**lineage({"a": "1", "b": "1"}))


def changed(**data: Any) -> DataConfig:
    return DataConfig.model_validate(DATA.model_dump() | data)


def test_the_first_build_reads_everything() -> None:
    rerun = plan(None, None, lineage({"a": "1"}), incremental=True)
    assert rerun and (rerun.grow, rerun.events, rerun.catalogue) == (False, ["a"], ["items.csv"])


def test_nothing_new_is_no_build() -> None:
    assert plan(BEFORE, "v", lineage({"a": "1", "b": "1"}), incremental=True) is None


def test_new_files_alone_are_read() -> None:
    rerun = plan(BEFORE, "v", lineage({"a": "1", "b": "1", "c": "1"}), incremental=True)
    assert rerun and (rerun.grow, rerun.events, rerun.catalogue) == (True, ["c"], [])


def test_a_changed_catalogue_is_read_without_the_events() -> None:
    rerun = plan(BEFORE, "v", lineage({"a": "1", "b": "1"}, items={"items.csv": "2"}), incremental=True)
    assert rerun and (rerun.grow, rerun.events, rerun.catalogue) == (True, [], ["items.csv"])


def test_events_of_files_that_are_gone_stay() -> None:
    assert plan(BEFORE, "v", lineage({"b": "1"}), incremental=True) is None
    rerun = plan(BEFORE, "v", lineage({"b": "1", "c": "1"}), incremental=True)
    assert rerun and rerun.grow and rerun.events == ["c"]
    assert "1 event files are gone from the input, their events stay" in rerun.why


@pytest.mark.parametrize(
    "data",
    [
        {"min_interactions": 7},
        {"max_history": 9, "keep_last": 9},
        {"split": {"kind": "time", "valid_from": 1, "test_from": 2}},
        {"columns": {"text": "name"}},
    ],
)
def test_settings_that_only_cut_sequences_or_texts_need_no_event_again(data: dict[str, Any]) -> None:
    rerun = plan(BEFORE, "v", lineage({"a": "1", "b": "1"}, changed(**data)), incremental=True)
    assert rerun and (rerun.grow, rerun.events) == (True, [])
    assert rerun.catalogue == (["items.csv"] if "columns" in data else [])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"shards": 3}, "data.shards has changed"),
        ({"min_rating": 4, "columns": {"rating": "r"}}, "data.columns has changed"),
        ({"columns": {"time": "when"}}, "data.columns has changed"),
        ({"min_item_interactions": 5}, "data.min_item_interactions"),
    ],
)
def test_settings_that_shape_events_need_all_of_them(data: dict[str, Any], reason: str) -> None:
    rerun = plan(BEFORE, "v", lineage({"a": "1", "b": "1"}, changed(**data)), incremental=True)
    assert rerun and (rerun.grow, rerun.events, rerun.catalogue) == (False, ["a", "b"], ["items.csv"])
    assert reason in rerun.why


def test_with_an_item_filter_every_rerun_reads_all() -> None:
    data = changed(min_item_interactions=2)
    before = version(**lineage({"a": "1"}, data))
    assert plan(before, "v", lineage({"a": "1"}, data), incremental=True) is None
    rerun = plan(before, "v", lineage({"a": "1", "b": "1"}, data), incremental=True)
    assert rerun and (rerun.grow, rerun.events) == (False, ["a", "b"])


def test_a_changed_file_needs_all_files() -> None:
    rerun = plan(BEFORE, "v", lineage({"a": "2", "b": "1"}), incremental=True)
    assert rerun and not rerun.grow and "a has changed" in rerun.why
    with pytest.raises(UserError, match=r"^a has changed, so every input must be read again, but b \(1 files in all\)"):
        plan(BEFORE, "v", lineage({"a": "2"}), incremental=True)
    rerun = plan(BEFORE, "v", lineage({"a": "2"}), incremental=False)
    assert rerun and (rerun.grow, rerun.events) == (False, ["a"])


def test_inputs_of_another_dataset_are_refused() -> None:
    other = changed(interactions="/other/*.csv")
    for incremental in (True, False):
        with pytest.raises(
            UserError, match=r"^data\.interactions=/other/\*\.csv shares no file with /raw/\*\.csv, .* v "
        ):
            plan(BEFORE, "v", lineage({"x": "1"}, other), incremental=incremental)
    wider = plan(BEFORE, "v", lineage({"a": "1", "b": "1", "x": "1"}, other), incremental=True)
    assert wider and wider.grow and wider.events == ["x"]
