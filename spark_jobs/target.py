"""Where a dataset may be built: nothing that the build did not make is ever replaced."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from pad_dist import storage
from pad_dist.errors import UserError
from spark_jobs.inputs import absolute
from spark_jobs.shards import ITEMS, SEQUENCES

_REPLACED = {"items": ITEMS, "sequences": SEQUENCES}
_OWN = (*_REPLACED, "text", "rejected")


def require_target(dataset: str, staging: str, inputs: Mapping[str, str]) -> None:
    """Check, before any work, that building `dataset` by way of `staging` deletes nothing of the user's.

    What an interrupted build left there, without a manifest, is ours and may be replaced.

    Args:
        inputs: setting -> URL of each raw input.

    Raises:
        UserError: an input lies in a folder that the build replaces; `dataset` is a
            file, or holds items/ or sequences/ of something else.
    """
    for setting, url in inputs.items():
        for folder in (*(storage.join(dataset, name) for name in _OWN), staging):
            if f"{_place(url)}/".startswith(f"{_place(folder)}/"):
                raise UserError(
                    f"{setting}={url} lies in {folder}, which the build replaces: set dataset to another directory"
                )
    fs, path = storage.filesystem(dataset)
    if fs.isfile(path):
        raise UserError(f"{dataset} is a file: set dataset to a directory")
    if storage.exists(storage.join(dataset, "manifest.json")):
        return
    for name, schema in _REPLACED.items():
        folder = storage.join(dataset, name)
        if storage.exists(folder) and not _made_by_us(folder, schema):
            raise UserError(
                f"{folder} is no part of a dataset and would be deleted: set dataset to another directory, or remove it"
            )


def _place(url: str) -> str:
    """One spelling per place: of local paths that without links, `..` and a last slash."""
    fs, path = storage.filesystem(absolute(url))
    return os.path.realpath(path) if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(path).rstrip("/")


def _made_by_us(folder: str, schema: pa.Schema) -> bool:
    """Whether a directory holds shards of `schema` alone, as the build names them."""
    fs, path = storage.filesystem(folder)
    if not fs.isdir(path):
        return False
    for entry in fs.ls(path, detail=True):
        if entry["type"] != "file" or not re.fullmatch(r"part-\d{5,}\.parquet", entry["name"].rsplit("/", 1)[-1]):
            return False
        try:
            with fs.open(entry["name"], "rb") as file:
                found = pq.read_schema(file)
        except pa.ArrowException:
            return False
        if not found.equals(schema):
            return False
    return True
