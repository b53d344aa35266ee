"""What a dataset was made from: settings and input files, so that a rerun knows what is new."""

from __future__ import annotations

from typing import Any

from fsspec.core import has_magic

from pad_dist import storage
from pad_dist.config import DataConfig

INPUTS = ("interactions", "items", "erase_users", "erase_items")
"""Keys of `data` that name input files."""

_STATE = ("size", "mtime", "ETag", "etag", "md5Hash", "LastModified", "last_modified", "updated")
_NOT_CONTENT = {*INPUTS, "synthetic", "max_rejected_share", "incremental", "spark_master", "spark_conf"}


def settings_of(data: DataConfig) -> dict[str, Any]:
    """The settings that shape the content."""
    return data.model_dump(mode="json", exclude=_NOT_CONTENT)


def lineage_of(data: DataConfig) -> dict[str, Any]:
    """The present {"urls": {input: absolute URL}, "inputs": {input: {file: state}}, "settings": {...}}.

    A file's state changes when the file does.
    """
    urls = {name: getattr(data, name) for name in INPUTS}
    return {
        "urls": {name: _absolute(url) if url else "" for name, url in urls.items()},
        "inputs": {name: input_files(url) if url else {} for name, url in urls.items()},
        "settings": settings_of(data),
    }


def input_files(url: str) -> dict[str, str]:
    """Present files of `url` (a file, a directory or a pattern), each with its state.

    Files whose name begins with `_` or `.` are not data (as for Spark).
    """
    fs, path = storage.filesystem(url)
    paths = sorted(map(str, fs.glob(path) if has_magic(path) else fs.find(path)))
    data = [file for file in paths if not file.rsplit("/", 1)[-1].startswith(("_", "."))]
    return {str(fs.unstrip_protocol(file)): _state(fs.info(file)) for file in data}


def _state(info: dict[str, Any]) -> str:
    """Size, and time or checksum under the store's names for them, without owner, permissions or link count."""
    return " ".join(f"{name}={info[name]}" for name in _STATE if name in info)


def _absolute(url: str) -> str:
    fs, path = storage.filesystem(url)
    return str(fs.unstrip_protocol(path))
