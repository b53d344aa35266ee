"""A dataset is built where nothing else lies in the way, and never out of its own files."""

import os
from pathlib import Path
from typing import Any

import pytest

from pad_dist.config import DataConfig
from pad_dist.errors import UserError
from spark_jobs.target import require_target


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for file in ("events.csv", "items.csv", "data/notes.txt", "data/raw/events.csv"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("user,item,time\n")
    return tmp_path


def require(place: Path, dataset: str = "data", **inputs: Any) -> None:
    values = {"interactions": f"{place}/events.csv", "items": f"{place}/items.csv"} | inputs
    require_target(f"{place}/{dataset}", DataConfig.model_validate(values))


def test_a_directory_may_hold_other_files_and_raw_inputs_too(place: Path) -> None:
    require(place)
    require(place, "new/deep")
    require(place, interactions=f"{place}/data/raw")
    require(place, interactions=f"{place}/data/raw/*.csv")


@pytest.mark.parametrize("name", ["interactions", "items", "erase_users", "erase_items"])
@pytest.mark.parametrize("folder", ["versions", "text", "rejected"])
def test_an_input_in_a_folder_that_builds_delete_from_is_refused(place: Path, folder: str, name: str) -> None:
    inside = place / "data" / folder / "raw"
    inside.mkdir(parents=True)
    (inside / "own.csv").touch()
    for url in (
        f"{inside}/own.csv",
        str(inside),
        os.path.relpath(inside),
        f"{place}/*/{folder}/*/*.csv",
        f"file://{place}/data/../data/{folder}/",
    ):
        with pytest.raises(UserError, match=rf"^data\.{name}=.* lies in {place}/data/{folder}, .*: set dataset to a"):
            require(place, **{name: url})
    (place / "link").symlink_to(inside)
    with pytest.raises(UserError, match=rf"lies in {place}/data/{folder}"):
        require(place, **{name: f"{place}/link"})


def test_an_input_that_holds_the_dataset_is_refused_before_there_is_one(place: Path) -> None:
    for url in (str(place), f"file://{place}/", f"{place}/new"):
        with pytest.raises(UserError, match=rf"^data\.interactions={url} holds {place}/new, so a build would read"):
            require(place, "new", interactions=url)
    (place / "ne").mkdir()
    require(place, "new", interactions=f"{place}/ne")


@pytest.mark.parametrize("name", ["interactions", "items"])
def test_inputs_must_be_set(place: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"^data\.{name} is not set: give the URL of a CSV"):
        require(place, **{name: ""})


def test_a_dataset_place_that_is_a_file_is_refused(place: Path) -> None:
    with pytest.raises(UserError, match=r"data/notes\.txt is a file: set dataset to a directory$"):
        require(place, "data/notes.txt")
    assert (place / "data" / "notes.txt").exists()


def test_one_version_of_a_dataset_takes_no_builds(place: Path) -> None:
    with pytest.raises(UserError, match=r"versions/000001-00000000 is one version of a dataset, .*: set dataset to"):
        require(place, "data/versions/000001-00000000")
