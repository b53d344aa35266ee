"""`pad-dist data` on datasets written without Spark."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pad_dist import storage
from pad_dist.cli.main import app
from pad_dist.dataset import versions
from pad_dist.dataset.manifest import read_manifest
from pad_dist.dataset.quality import ItemKind, Measures, build_quality
from tests.support.tiny_dataset import random_sequences, write_tiny_dataset


def data(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def publish(root: Path, items: int, item_map: list[list[Any]], inputs: list[str], **settings: Any) -> str:
    """One version with the manifest, lineage and quality that a build leaves."""
    version = versions.next_id(str(root))
    url = versions.version_url(str(root), version)
    write_tiny_dataset(Path(url), random_sequences(items // 2, items), items)
    manifest = read_manifest(url, "the test")
    lineage = {
        "created": f"2026-01-0{len(inputs)}T10:00:00+00:00",
        "inputs": {"interactions": {file: f"identity of {file}" for file in inputs}, "items": {}},
    }
    manifest = manifest.model_copy(
        update={
            "parameters": {"item_map": item_map, "bin_cuts": [0, 1], **settings},
            "rejected": {"interactions: time is blank": len(inputs)},
            "lineage": lineage,
        }
    )
    storage.write_json(storage.join(url, "manifest.json"), manifest.model_dump())
    measures = Measures({items: items // 2}, {ItemKind(2, 1, True): items}, {20: items}, 1, 1)
    storage.write_json(storage.join(url, "quality.json"), build_quality(manifest, measures, {}))
    storage.write_bytes(storage.join(url, "quality.html"), b"<html>")
    versions.publish(str(root), version, versions.current(str(root)))
    return version


@pytest.fixture
def dataset(tmp_path: Path) -> tuple[Path, list[str]]:
    first, grown = [20, "aaaa"], [30, "bbbb"]
    split = {"kind": "leave_one_out"}
    ids = [
        publish(tmp_path, 20, [first], ["/in/[a].csv"], split=split, min_rating=None),
        publish(tmp_path, 30, [first, grown], ["/in/[a].csv", "/in/b.csv"], split=split, min_rating=3),
        publish(tmp_path, 20, [[20, "cccc"]], ["/in/[a].csv", "/in/b.csv", "/in/c.csv"], split=split, min_rating=3),
    ]
    storage.write_json(storage.join(versions.version_url(str(tmp_path), ids[1]), "text/minilm-1a2b.json"), {})
    return tmp_path, ids


def test_list_shows_every_version_and_marks_the_current_one(dataset: tuple[Path, list[str]]) -> None:
    root, ids = dataset
    listed = data("list", root)
    assert listed.exit_code == 0
    rows = {version: line for line in listed.output.splitlines() for version in ids if version in line}
    assert list(rows) == ids
    assert ["*" in row for row in rows.values()] == [False, False, True]
    assert "2026-01-02T10:00:00+00:00" in rows[ids[1]] and "minilm-1a2b" in rows[ids[1]]
    manifest = read_manifest(versions.version_url(str(root), ids[1]), "the test")
    size = sum(file.stat().st_size for file in (root / "versions" / ids[1]).rglob("*") if file.is_file())
    for part in ("15", "30", f"{manifest.counts['interactions']:,}", manifest.content_hash()[:12], f"{size:,}"):
        assert part in rows[ids[1]]


@pytest.mark.parametrize("name", [None, "3", "id"])
def test_show_tells_one_version(dataset: tuple[Path, list[str]], name: str | None) -> None:
    root, ids = dataset
    shown = data("show", root, *([] if name is None else [ids[2] if name == "id" else name]))
    assert shown.exit_code == 0
    for part in (
        f"version {ids[2]} (current), created 2026-01-03",
        "split.kind",
        "leave_one_out",
        "/in/[a].csv",
        "interactions: time is blank",
        "item map: 20 items",
        f"quality report: {versions.version_url(str(root), ids[2])}/quality.html",
    ):
        assert part in shown.output
    assert "bin_cuts" not in shown.output


def test_show_of_an_older_version_does_not_call_it_current(dataset: tuple[Path, list[str]]) -> None:
    root, ids = dataset
    assert f"version {ids[0]}, created 2026-01-01" in data("show", root, 1).output


def test_diff_tells_counts_settings_inputs_item_map_and_drift(dataset: tuple[Path, list[str]]) -> None:
    root, ids = dataset
    compared = data("diff", root, 1, 2)
    assert compared.exit_code == 0
    rows = [line.replace("│", " ").split() for line in compared.output.splitlines()]
    assert ["users", "10", "15", "+5"] in rows
    assert ["interactions:", "time", "is", "blank", "1", "2", "+1"] in rows
    assert ["min_rating", "None", "3"] in rows
    assert "split.kind" not in compared.output
    assert ["interactions", "/in/b.csv"] in rows and "/in/[a].csv" not in compared.output
    assert f"item map: {ids[1]} extends {ids[0]} by 10 items" in compared.output
    assert ["history", "length", "1.000"] in rows
    assert "moved: users went from 10 to 15 (+50.0%)" in compared.output


def test_diff_says_when_checkpoints_do_not_fit_and_when_nothing_changed(dataset: tuple[Path, list[str]]) -> None:
    root, ids = dataset
    assert f"item map: {ids[2]} does not extend {ids[1]}" in data("diff", root, 2, 3).output
    same = data("diff", root, 2, 2).output
    assert "the content is the same" in same and "moved" not in same
    assert f"item map: {ids[1]} extends {ids[1]} by 0 items" in same


def test_gc_dry_run_tells_and_leaves_what_gc_then_removes(dataset: tuple[Path, list[str]]) -> None:
    root, ids = dataset
    (root / "text").mkdir()
    (root / "text" / "a.parquet").write_bytes(b"123")
    os.utime(root / "text" / "a.parquet", (0, 0))
    files = sorted(root.rglob("*"))
    told = data("gc", root, "--keep", 1, "--dry-run")
    assert told.exit_code == 0 and sorted(root.rglob("*")) == files
    done = data("gc", root, "--keep", 1)
    assert done.output == told.output.replace("would remove", "removed")
    lines = done.output.splitlines()
    assert lines[:3] == [f"removed version {ids[0]}", f"removed version {ids[1]}", "removed file text/a.parquet"]
    assert "minilm-1a2b" in lines[3] and lines[4].endswith("bytes")
    assert versions.published(str(root)) == versions.present(str(root)) == [ids[2]]


def test_gc_help_says_that_it_ends_an_erasure() -> None:
    words = " ".join(data("gc", "--help").output.split())
    assert "erased keys" in words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "{root}/nothing"], "so no dataset is there"),
        (["show", "{root}", "9"], "'9' is no published version; there are {ids}: give one of them"),
        (["diff", "{root}", "1", "0000"], "'0000' may mean 3 versions; there are {ids}: give one of them"),
        (["gc", "{root}", "--keep", "0"], "--keep 0: at least the current version stays"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(
    dataset: tuple[Path, list[str]], arguments: list[str], message: str
) -> None:
    root, ids = dataset
    names = {"root": root, "ids": ", ".join(ids)}
    refused = data(*(argument.format(**names) for argument in arguments))
    assert refused.exit_code == 2
    assert message.format(**names) in refused.stderr
    assert len(refused.stderr.splitlines()) == 1 and refused.stdout == ""
    assert versions.published(str(root)) == ids


def test_diff_without_a_quality_report_says_nothing_but_that(dataset: tuple[Path, list[str]]) -> None:
    root, ids = dataset
    (root / "versions" / ids[0] / "quality.json").unlink()
    refused = data("diff", root, 1, 2)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert f"{ids[0]}/quality.json does not exist" in refused.stderr


def test_the_commands_load_no_engine(dataset: tuple[Path, list[str]]) -> None:
    root, _ = dataset
    program = (
        "import json, sys\n"
        "from pad_dist.cli.main import app\n"
        f"for arguments in (['list'], ['show'], ['gc', '--keep', '1', '--dry-run']):\n"
        f"    app(['data', arguments[0], {str(root)!r}, *arguments[1:]], standalone_mode=False)\n"
        f"app(['data', 'diff', {str(root)!r}, '1', '2'], standalone_mode=False)\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert "pad_dist.dataset.garbage" in loaded
    assert not loaded & {"torch", "pyspark", "deepspeed", "torchrec", "transformers", "pandas", "pyarrow"}
