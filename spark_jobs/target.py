"""Where a dataset may be built."""

from __future__ import annotations

import os

from fsspec.implementations.local import LocalFileSystem

from pad_dist import storage
from pad_dist.config import DataConfig
from pad_dist.dataset import versions
from pad_dist.dataset.lineage import INPUTS, input_files
from pad_dist.errors import UserError
from spark_jobs.inputs import absolute
from spark_jobs.sources import REJECTED

_OURS = ("versions", "text", REJECTED)
"""Folders of a dataset that builds write to and delete from; builds touch nothing else in it."""


def require_target(dataset: str, data: DataConfig) -> None:
    """Check, before any work, that `dataset` may take versions and that the raw inputs are not among them.

    Raises:
        UserError: an input is not set, contains the dataset or is in a folder that
            builds delete from; `dataset` is a file, or one version of a dataset.
    """
    for name in ("interactions", "items"):
        if not getattr(data, name):
            raise UserError(f"data.{name} is not set: give the URL of a CSV, JSON lines or Parquet input")
    fs, path = storage.filesystem(dataset)
    if fs.isfile(path):
        raise UserError(f"{dataset} is a file: set dataset to a directory")
    if versions.root_of(dataset) != dataset:
        raise UserError(f"{dataset} is one version of a dataset, which never changes: set dataset to its root")
    for name in INPUTS:
        if url := getattr(data, name):
            _require_apart(f"data.{name}={url}", url, dataset)


def _require_apart(what: str, url: str, dataset: str) -> None:
    if f"{_place(dataset)}/".startswith(f"{_place(url)}/"):
        raise UserError(
            f"{what} holds {dataset}, so a build would read what it has written: set one of them to another directory"
        )
    ours = {folder: f"{_place(storage.join(dataset, folder))}/" for folder in _OURS}
    places = [_place(file) for file in input_files(url)]
    for folder, place in ours.items():
        if any(file.startswith(place) for file in places):
            raise UserError(
                f"{what} lies in {storage.join(dataset, folder)}, where builds write and delete: set dataset to "
                "another directory"
            )


def _place(url: str) -> str:
    """The URL in its one spelling: a local path without links, `..` and trailing slash."""
    fs, path = storage.filesystem(absolute(url))
    return os.path.realpath(path) if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(path).rstrip("/")
