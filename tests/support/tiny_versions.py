"""Publish versions of a tiny dataset, without Spark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pad_dist.dataset import versions
from pad_dist.dataset.manifest import read_manifest, write_manifest
from tests.support.tiny_dataset import Sequences, write_tiny_dataset


def publish_tiny(root: str, sequences: Sequences, item_map: list[list[Any]], **lineage: Any) -> str:
    """Make histories over the items of `item_map` the current version of `root`; returns its id."""
    before, version = versions.current(root), versions.next_id(root)
    url = write_tiny_dataset(Path(versions.version_url(root, version)), sequences, item_map[-1][0])
    manifest = read_manifest(url, "the test")
    manifest = manifest.model_copy(update={"parameters": {"item_map": item_map, "bin_cuts": []}, "lineage": lineage})
    write_manifest(url, manifest)
    versions.publish(root, version, before)
    return version
