"""Which version of a dataset a stage was trained on, and what to do when it is not this one."""

from __future__ import annotations

from typing import Any

from pad_dist import storage
from pad_dist.dataset import versions
from pad_dist.dataset.reader import Dataset

Record = dict[str, Any]
"""`version` (id, None for a directory without versions), `content_hash` and `item_map` of a dataset."""


def record(dataset: Dataset) -> Record:
    """What a checkpoint and a result remember of their dataset."""
    return {"version": dataset.version, "content_hash": dataset.content_hash, "item_map": dataset.item_map}


def described(trained_on: Record) -> str:
    """Version and content in words.

    >>> described({"version": "000002-1f3a5b7c", "content_hash": "9d0c5a7b33" + "0" * 54, "item_map": [[40, "ab"]]})
    'version 000002-1f3a5b7c (content 9d0c5a7b3300)'
    """
    name = f"version {trained_on['version']}" if trained_on["version"] else "a dataset without versions"
    return f"{name} (content {trained_on['content_hash'][:12]})"


def other_version(result: str, dataset: Dataset, again: str) -> str | None:
    """Why what `result` (URL of a result.json) tells of is not of this dataset, and the ways out.

    None where the dataset is the same: then settings differ. `again` is the command that trains the stage.
    """
    before: Record | None = storage.read_json(result).get("dataset") if storage.exists(result) else None
    if before is None or before["content_hash"] == dataset.content_hash:
        return None
    folder, root = result.rpartition("/")[0], versions.root_of(dataset.url)
    ways = [
        f"run `{again}` to train on the new one",
        f"train on from it with warm_start={_parent(folder)} --out NEW",
    ]
    if before["version"] in versions.published(root):
        ways.insert(0, f"set dataset={versions.version_url(root, before['version'])} to stay with the old one")
    return f"{folder} was trained on {described(before)}, this run reads {described(record(dataset))}: " + ", or ".join(
        ways
    )


def _parent(folder: str) -> str:
    return folder.rpartition("/")[0]
