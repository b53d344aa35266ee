"""One file of text vectors, made in an executor: a range of items, named by its recipe and texts.

    text/part-<first index>-<last index>-<digest of the recipe>-<digest of the texts>.parquet

A file is published atomically, so an existing one is complete, whatever was killed
since. Each row keeps the hash of its text and recipe: a range with some changed texts
takes the rows of all other texts from earlier files that overlap it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel

from pad_dist import storage
from pad_dist.config import TextConfig
from pad_dist.dataset.manifest import FileEntry, verify_file
from pad_dist.dataset.text_table import BUILD_COMMAND, EMBED_COMMAND, TEXT, decode, encode
from pad_dist.errors import UserError
from spark_jobs.text_encoder import load_encoder
from spark_jobs.text_reduction import Reduction

Recipe = dict[str, Any]
_NAME = re.compile(r"part-(\d{9,})-(\d{9,})-([0-9a-f]{8})-[0-9a-f]{16}\.parquet")


class Shard(BaseModel):
    """A finished file."""

    entry: FileEntry
    """Its path is relative to the dataset's root."""
    dim: int
    """Width of the rows."""
    embedded: int
    """Texts that the model embedded to make it."""


@dataclass(frozen=True)
class Source:
    """What an executor needs to embed any range of items.

    Attributes:
        root: the dataset, where vectors are written.
        version_url: the version that `items`, its item files, belong to.
        revision: of `model_revision`.
        present: names of the files in `<root>/text` when the job began.
    """

    root: str
    version_url: str
    items: tuple[FileEntry, ...]
    text: TextConfig
    revision: str
    present: tuple[str, ...]

    @property
    def recipe(self) -> Recipe:
        """All that a vector depends on besides its text."""
        shape = {"model", "gguf_file", "pooling", "bidirectional", "max_tokens", "precision"}
        return {**self.text.model_dump(include=shape), "revision": self.revision}


def digest_of(*parts: Any) -> str:
    """Hex SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def shard_path(first: int, hashes: list[str], recipe: Any) -> str:
    """Path of a file, relative to the root: equal exactly when range, recipe and texts are."""
    last = first + len(hashes) - 1
    return f"{TEXT}/part-{first:09d}-{last:09d}-{digest_of(recipe)[:8]}-{digest_of(hashes)[:16]}.parquet"


def embed_range(source: Source, first: int, stop: int, device: str) -> Shard:
    """Make the file of items first..stop-1, unless it exists.

    Raises:
        UserError: item files differ from their manifest, the model cannot be loaded, or the store fails.
    """
    texts = _texts(source, first, stop)
    prefix = json.dumps(source.recipe, sort_keys=True)
    hashes = [hashlib.sha256(f"{prefix}\n{text}".encode()).hexdigest() for text in texts]
    path = shard_path(first, hashes, source.recipe)
    if existing := _read(storage.join(source.root, path)):
        return Shard(entry=_entry(source.root, path, first, len(hashes)), dim=existing[1].shape[1], embedded=0)
    known = _taken_over(source, first, stop, set(hashes))
    missing = {key: text for key, text in zip(hashes, texts, strict=True) if text and key not in known}
    if missing or not known:
        encoder = load_encoder(source.text, source.revision, device)
        made = encoder.encode(list(missing.values())) if missing else np.empty((0, encoder.dim), np.float32)
        known |= dict(zip(missing, made.astype(np.float16), strict=True))
        dim = encoder.dim
    else:
        dim = len(next(iter(known.values())))
    nothing = np.zeros(dim, np.float16)  # an erased item has no text
    rows = np.stack([known.get(key, nothing) for key in hashes])
    return Shard(entry=_write(source.root, path, first, rows, hashes, "float16"), dim=dim, embedded=len(missing))


def raw_rows(root: str, entry: FileEntry) -> tuple[list[str], NDArray[np.float16]]:
    """Hashes and rows of a file that this job has made or checked.

    Raises:
        UserError: it is gone or has changed since.
    """
    contents = _read(storage.join(root, entry.path))
    if contents is None:
        raise UserError(f"{storage.join(root, entry.path)} changed while it was read: run `{EMBED_COMMAND}` again")
    return contents


def convert_shard(root: str, raw: FileEntry, recipe: Any, reduction: Reduction | None, dtype: str) -> Shard:
    """Make the reduced or int8 form of a file of raw vectors, unless it exists.

    Args:
        recipe: all that the form depends on besides the raw rows.
        reduction: None keeps the rows' width.

    Raises:
        UserError: the raw file changed, or the store fails.
    """
    hashes, rows = raw_rows(root, raw)
    first = raw.first_index or 0
    path = shard_path(first, hashes, recipe)
    if existing := _read(storage.join(root, path)):
        return Shard(entry=_entry(root, path, first, len(hashes)), dim=existing[1].shape[1], embedded=0)
    made = rows.astype(np.float32)
    if reduction is not None:
        made = reduction(made)
    return Shard(entry=_write(root, path, first, made, hashes, dtype), dim=made.shape[1], embedded=0)


def _taken_over(source: Source, first: int, stop: int, wanted: set[str]) -> dict[str, NDArray[np.float16]]:
    """Rows of `wanted` hashes from files of the same recipe that overlap the range."""
    known: dict[str, NDArray[np.float16]] = {}
    for path in _overlapping(source, first, stop):
        if known.keys() >= wanted:
            break
        if contents := _read(storage.join(source.root, path)):
            known |= {key: row for key, row in zip(*contents, strict=True) if key in wanted}
    return known


def _overlapping(source: Source, first: int, stop: int) -> Iterator[str]:
    for name in source.present:
        if (named := _NAME.fullmatch(name)) and named[3] == digest_of(source.recipe)[:8]:
            low, high = int(named[1]), int(named[2])
            if low < stop and first <= high:
                yield f"{TEXT}/{name}"


def _texts(source: Source, first: int, stop: int) -> list[str]:
    """Texts of item_index first..stop-1, from the files that overlap the range."""
    texts: list[str] = []
    for entry in source.items:
        low = entry.first_index or 1
        if low < stop and first < low + entry.rows:
            texts += _item_texts(source.version_url, entry)[max(first - low, 0) : stop - low]
    if len(texts) != stop - first:
        raise UserError(
            f"{source.version_url} lists no texts for items {first}..{stop - 1}: run `{BUILD_COMMAND}` again"
        )
    return texts


@lru_cache(maxsize=1)
def _item_texts(version_url: str, entry: FileEntry) -> list[str]:
    """Texts of one items file; the last one is cached, as neighbouring ranges read the same file."""
    verify_file(version_url, entry)
    fs, path = storage.filesystem(storage.join(version_url, entry.path))
    with fs.open(path, "rb") as file:
        table = pq.read_table(file, columns=["item_index", "text"])
    first = entry.first_index or 1
    if not np.array_equal(table["item_index"].to_numpy(), np.arange(first, first + entry.rows)):
        raise UserError(f"{path} does not hold items {first}..{first + entry.rows - 1}: run `{BUILD_COMMAND}` again")
    texts: list[str] = table["text"].to_pylist()
    return texts


def _read(url: str) -> tuple[list[str], NDArray[np.float16]] | None:
    """Hashes and rows of a file; None if it is absent or fails its page checksums, so that it is made again."""
    if not storage.exists(url):
        return None
    fs, path = storage.filesystem(url)
    try:
        with fs.open(path, "rb") as file:
            table = pq.ParquetFile(file, page_checksum_verification=True).read()
        return table["content_hash"].to_pylist(), decode(table)
    except (pa.ArrowException, OSError, KeyError):
        return None


def _write(root: str, path: str, first: int, rows: NDArray[np.floating], hashes: list[str], dtype: str) -> FileEntry:
    index = pa.array(np.arange(first, first + len(rows), dtype=np.int64))
    table = pa.table({"item_index": index, **encode(rows, dtype), "content_hash": pa.array(hashes, pa.string())})
    url = storage.join(root, path)
    try:
        with storage.atomic_writer(url) as file:
            pq.write_table(table, file, compression="zstd", write_page_checksum=True)
    except OSError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{url} cannot be written ({reason}): mend the store and run `{EMBED_COMMAND}` again, "
            "finished files are kept"
        ) from None
    return _entry(root, path, first, len(rows))


def _entry(root: str, path: str, first: int, rows: int) -> FileEntry:
    url = storage.join(root, path)
    fs, plain = storage.filesystem(url)
    return FileEntry(path=path, rows=rows, bytes=fs.size(plain), sha256=storage.sha256(url), first_index=first)
