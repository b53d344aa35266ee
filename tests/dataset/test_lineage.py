"""What tells a rerun that an input has changed."""

import os
from pathlib import Path

from pad_dist.config import DataConfig
from pad_dist.dataset.lineage import input_files, lineage_of


def test_a_pattern_a_directory_and_a_file_name_their_data_files(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "_SUCCESS", ".a.csv.crc"):
        (tmp_path / name).write_text(name)
    urls = [f"file://{tmp_path}/a.csv", f"file://{tmp_path}/b.csv"]
    assert list(input_files(str(tmp_path))) == list(input_files(f"{tmp_path}/*.csv")) == urls
    assert list(input_files(f"{tmp_path}/a.csv")) == list(input_files(f"{tmp_path}/x/../a.csv")) == urls[:1]


def test_a_mark_follows_the_content_and_not_the_rights(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("one")
    first = input_files(str(file))
    file.chmod(0o600)
    os.link(file, tmp_path / "b.csv")
    assert input_files(str(file)) == first
    file.write_text("other")
    assert input_files(str(file)) != first


def test_a_relative_path_is_recorded_whole() -> None:
    urls = lineage_of(DataConfig(interactions="raw/*.csv", items="../items.csv"))["urls"]
    assert urls["interactions"] == f"file://{Path.cwd()}/raw/*.csv"
    assert urls["items"] == f"file://{Path.cwd().parent}/items.csv"
    assert urls["erase_items"] == ""
