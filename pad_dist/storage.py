"""Files at any fsspec URL: read, publish atomically, checksum."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pad_dist.errors import UserError

_BLOCK = 1 << 20


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of a URL and the path inside it, a local one absolute and without `..`.

    Raises:
        UserError: unknown protocol, or the package or library that serves it is missing.
    """
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ValueError as error:
        raise UserError(f"{url} is no local path and no URL that fsspec knows: {_line(error)}") from None
    except (ImportError, OSError) as error:
        raise UserError(f"{url} needs what is not installed here: {_line(error)}") from None
    return fs, os.path.normpath(path) if isinstance(fs, LocalFileSystem) else str(path)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def join(url: str, *parts: str) -> str:
    """Append path parts to a URL or local path."""
    return "/".join([url.rstrip("/"), *parts])


def exists(url: str) -> bool:
    """Whether a file or directory exists."""
    fs, path = filesystem(url)
    return bool(fs.exists(path))


def remove(url: str) -> None:
    """Delete a file or directory tree if it exists."""
    fs, path = filesystem(url)
    if fs.exists(path):
        fs.rm(path, recursive=True)


def names(url: str) -> list[str]:
    """Names of a directory's entries; none if the directory does not exist."""
    fs, path = filesystem(url)
    fs.invalidate_cache(path)  # other ranks and runs write to it too
    return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in fs.ls(path, detail=False)) if fs.isdir(path) else []


def sync(url: str) -> None:
    """Flush a local file and its directory to disk, so that they survive a crash of the machine."""
    fs, path = filesystem(url)
    if isinstance(fs, LocalFileSystem):
        for entry in (path, os.path.dirname(path)):
            opened = os.open(entry, os.O_RDONLY)
            try:
                os.fsync(opened)
            finally:
                os.close(opened)


def read_bytes(url: str) -> bytes:
    """The content of one file.

    Raises:
        UserError: no such file.
    """
    fs, path = filesystem(url)
    try:
        return bytes(fs.cat_file(path))
    except FileNotFoundError:
        raise UserError(f"{url} does not exist") from None


@contextmanager
def atomic_writer(url: str) -> Iterator[BinaryIO]:
    """Open `url` for writing; the complete file appears when the block ends, or nothing does.

    An earlier file stays until then. The content is written under another name and
    moved, because closing a file of an object store publishes its content even when
    the block fails.

    Raises:
        UserError: no permission, or something of another kind is in the way.
    """
    fs, path = filesystem(url)
    target = f"{path}.{uuid.uuid4().hex}.tmp"
    with _write_errors(url):
        fs.makedirs(fs._parent(path), exist_ok=True)
        opened = fs.open(target, "wb")
    try:
        with opened as file:
            yield cast(BinaryIO, file)
        with _write_errors(url):
            if isinstance(fs, LocalFileSystem):
                os.replace(target, path)
            else:
                fs.mv(target, path)
    except BaseException:
        if fs.exists(target):
            fs.rm_file(target)
        raise


@contextmanager
def _write_errors(url: str) -> Iterator[None]:
    try:
        yield
    except (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise UserError(f"{url} cannot be written, choose another place or free this one: {_line(error)}") from None


def make_directory(url: str) -> None:
    """Make a directory and its missing parents.

    Raises:
        UserError: no permission, or something of another kind is in the way.
    """
    fs, path = filesystem(url)
    with _write_errors(url):
        fs.makedirs(path, exist_ok=True)


def write_bytes(url: str, content: bytes) -> None:
    """Publish one file atomically."""
    with atomic_writer(url) as file:
        file.write(content)


def read_json(url: str) -> Any:
    """Parse one JSON file.

    Raises:
        UserError: missing or not JSON.
    """
    try:
        return json.loads(read_bytes(url))
    except ValueError as error:
        raise UserError(f"{url} is not valid JSON: {error}") from None


def write_json(url: str, value: Any) -> None:
    """Publish JSON with sorted keys, so that equal values are equal bytes."""
    write_bytes(url, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def sha256(url: str) -> str:
    """Hex digest of one file, read in blocks."""
    fs, path = filesystem(url)
    digest = hashlib.sha256()
    with fs.open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
