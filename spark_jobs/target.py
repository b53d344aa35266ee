"""Where a dataset may be built."""

from __future__ import annotations

import os

from fsspec.implementations.local import LocalFileSystem

from pad_dist import storage
from pad_dist.config import DataConfig
from pad_dist.data import versions
from pad_dist.data.lineage import INPUTS
from pad_dist.errors import UserError
from spark_jobs.inputs import absolute


def require_target(dataset: str, data: DataConfig) -> None:
    """Check, before any work, that `dataset` may take versions and that the raw inputs are not among them.

    Raises:
        UserError: inputs that are not set or lie in a folder that builds delete from;
            `dataset` is a file, or one version of a dataset.
    """
    for name in ("interactions", "items"):
        if not getattr(data, name):
            raise UserError(f"data.{name} is not set: give the URL of a CSV, JSON lines or Parquet input")
    for name in filter(lambda name: getattr(data, name), INPUTS):
        for folder in ("versions", "text", "rejected"):
            if f"{_place(getattr(data, name))}/".startswith(f"{_place(storage.join(dataset, folder))}/"):
                raise UserError(
                    f"data.{name}={getattr(data, name)} lies in {storage.join(dataset, folder)}, where builds write "
                    "and delete: set dataset to another directory"
                )
    fs, path = storage.filesystem(dataset)
    if fs.isfile(path):
        raise UserError(f"{dataset} is a file: set dataset to a directory")
    if versions.root_of(dataset) != dataset:
        raise UserError(f"{dataset} is one version of a dataset, which never changes: set dataset to its root")


def _place(url: str) -> str:
    """One spelling per place: of local paths that without links, `..` and a last slash."""
    fs, path = storage.filesystem(absolute(url))
    return os.path.realpath(path) if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(path).rstrip("/")
