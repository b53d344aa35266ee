"""Arrays that are cut over ranks, as plain safetensors files at any fsspec URL.

Each rank streams its shards into one file of its own. A shard is written in blocks of
whole rows, BLOCK_BYTES at most, from one buffer, and the checksum of each block is
kept in the record of the shard (`SavedShard`). A reader takes the blocks that hold
rows of its own shards, however the array is cut in the file, and checks each one. Nothing
is mapped into memory, and no buffer is larger than a block.
"""

from __future__ import annotations

import errno
import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
import torch
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor

from pad_dist import storage
from pad_dist.errors import UserError
from pad_dist.sparse.spec import TableShard

BLOCK_BYTES = 4 << 20
_PAGE = 4096
"""What O_DIRECT wants addresses, sizes and places in a file to be multiples of."""
_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _TYPES.items()}


class DamagedFile(UserError):
    """A file of a checkpoint is not what was written."""


@dataclass(frozen=True)
class SavedShard:
    """A shard in a file: `sizes` elements of an array of `shape` from `offsets` on, at byte `begin`.

    `checksums` are those of its blocks.
    """

    name: str
    file: str
    dtype: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    shape: tuple[int, ...]
    begin: int
    checksums: tuple[int, ...] = ()

    @property
    def row_bytes(self) -> int:
        return _DTYPES[self.dtype].itemsize * (self.sizes[1] if len(self.sizes) > 1 else 1)

    @property
    def nbytes(self) -> int:
        return self.sizes[0] * self.row_bytes

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> SavedShard:
        lists: dict[str, Any] = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**values | lists)


def blocks(shard: SavedShard) -> Iterator[tuple[int, int]]:
    """Rows [start, stop) of each block, counted from the shard's first row."""
    rows = max(1, BLOCK_BYTES // shard.row_bytes)
    return ((start, min(start + rows, shard.sizes[0])) for start in range(0, shard.sizes[0], rows))


def checksum(block: memoryview | bytes) -> int:
    """CRC-32 of the sums of each page's 64-bit words, and of the bytes after the last page.

    It sees a changed word, and a page that is zeroed, stale or in another's place, for a tenth of the processor time
    of a CRC-32 of all bytes, which training would wait for.
    """
    whole = len(block) - len(block) % _PAGE
    words = np.frombuffer(block, "<u8", whole // 8).reshape(-1, _PAGE // 8)
    return zlib.crc32(block[whole:], zlib.crc32(words.sum(1).tobytes()))


def layout(file: str, shards: Sequence[TableShard]) -> list[SavedShard]:
    """Where each shard will be in `file`, in their order."""
    plain = [
        SavedShard(one.name, file, _TYPES[one.tensor.dtype], one.offsets, tuple(one.tensor.shape), one.shape, 0)
        for one in shards
    ]
    begin, at = {}, 0
    # Larger types first, so that each shard begins at a multiple of its type's size.
    for number in sorted(range(len(plain)), key=lambda n: -_DTYPES[plain[n].dtype].itemsize):
        begin[number] = at
        at += plain[number].nbytes
    placed = [replace(shard, begin=begin[number]) for number, shard in enumerate(plain)]
    first = len(_header(placed, 0))
    return [replace(shard, begin=first + shard.begin) for shard in placed]


def _header(shards: Iterable[SavedShard], first: int) -> bytes:
    """The beginning of a safetensors file whose data begin at `first`, filled up to a page."""
    entries = {
        f"{shard.name}@{','.join(map(str, shard.offsets))}": {
            "dtype": shard.dtype,
            "shape": shard.sizes,
            "data_offsets": [shard.begin - first, shard.begin - first + shard.nbytes],
        }
        for shard in sorted(shards, key=lambda shard: shard.begin)
    }
    text = json.dumps(entries).encode()
    text += b" " * (-(len(text) + 8) % _PAGE)
    return len(text).to_bytes(8, "little") + text


def write_shards(
    folder: str, shards: Sequence[SavedShard], fill: Callable[[int, int, int, Tensor], None]
) -> list[SavedShard]:
    """Write all shards of one file; they come back with their checksums.

    Args:
        fill: (number of the shard, start, stop, out) puts rows [start, stop) of the shard into `out`.
    """
    written = list(shards)
    with BlockFile(storage.join(folder, shards[0].file)) as file:
        file.write(_header(shards, min(shard.begin for shard in shards)))
        for number in sorted(range(len(shards)), key=lambda n: shards[n].begin):
            shard, sums = shards[number], []
            for start, stop in blocks(shard):
                room = file.room((stop - start) * shard.row_bytes)
                out = torch.frombuffer(room, dtype=_DTYPES[shard.dtype]).view(stop - start, *shard.sizes[1:])
                fill(number, start, stop, out)
                sums.append(checksum(room))
                file.push(len(room))
            written[number] = replace(shard, checksums=tuple(sums))
    return written


class BlockFile:
    """A file written from one page-aligned buffer, past the page cache where the file system allows it.

    On the local file system what is written is on disk when the block ends.
    """

    def __init__(self, url: str) -> None:
        fs, path = storage.filesystem(url)
        self._local = isinstance(fs, LocalFileSystem)
        self._file: BinaryIO | io.FileIO = (
            io.FileIO(path, "w", opener=_open_direct) if self._local else fs.open(path, "wb")
        )
        # Memory of the allocator's, which a next save finds again: new pages cost more than what is written to them.
        memory = torch.empty(BLOCK_BYTES + 2 * _PAGE, dtype=torch.uint8)
        self._buffer = memoryview(memory.numpy().data)[-memory.data_ptr() % _PAGE :][: BLOCK_BYTES + _PAGE]
        self._filled = self._size = 0

    def __enter__(self) -> BlockFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._file:
            if kind is None and self._local:
                self._put(self._filled + -self._filled % _PAGE)
                self._file.truncate(self._size)
                os.fsync(self._file.fileno())

    def room(self, size: int) -> memoryview:
        """The next `size` bytes of the buffer, BLOCK_BYTES at most."""
        return self._buffer[self._filled : self._filled + size]

    def push(self, size: int) -> None:
        """Write what was put into the room."""
        self._size += size
        self._filled += size
        # A rest that fills no page waits for the next block.
        self._put(self._filled - self._filled % _PAGE if self._local else self._filled)

    def write(self, content: bytes) -> None:
        """Write bytes, also more than a block."""
        for start in range(0, len(content), BLOCK_BYTES):
            block = content[start : start + BLOCK_BYTES]
            self.room(len(block))[:] = block
            self.push(len(block))

    def _put(self, size: int) -> None:
        view = self._buffer[:size]
        while view:
            view = view[self._file.write(view) :]
        self._filled = max(self._filled - size, 0)
        self._buffer[: self._filled] = self._buffer[size : size + self._filled]


def _open_direct(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags, 0o666)  # a file system without direct writes


def read_shards(folder: str, saved: Sequence[SavedShard], shards: Iterable[TableShard]) -> None:
    """Fill shards in place from the arrays of their names, however those are cut.

    Raises:
        DamagedFile: naming it.
        UserError: an array is missing, or has another shape.
    """
    for shard in shards:
        sources = [source for source in saved if source.name == shard.name]
        if not sources:
            names = ", ".join(sorted({source.name for source in saved})) or "none"
            raise UserError(f"{folder} has no array {shard.name}: it has {names}")
        if sources[0].shape != shard.shape:
            raise UserError(f"{shard.name} of {folder} has the shape {sources[0].shape}, not {shard.shape}")
        missing = shard.tensor.numel()
        for source in sources:
            missing -= _read_overlap(folder, source, shard)
        if missing:
            raise DamagedFile(f"{folder} lacks {missing:,} values of {shard.name}")


def _read_overlap(folder: str, source: SavedShard, shard: TableShard) -> int:
    """Copy what both have; returns how many values."""
    low = [max(a, b) for a, b in zip(source.offsets, shard.offsets, strict=True)]
    ends = zip(source.offsets, source.sizes, shard.offsets, shard.tensor.shape, strict=True)
    high = [min(a + n, b + m) for a, n, b, m in ends]
    if any(a >= b for a, b in zip(low, high, strict=True)):
        return 0
    copied = 0
    for start, rows in read_blocks(folder, source, low[0] - source.offsets[0], high[0] - source.offsets[0]):
        first = start + source.offsets[0]
        box = [(max(first, low[0]), min(first + len(rows), high[0])), *zip(low[1:], high[1:], strict=True)]
        source_box = tuple(slice(a - at, b - at) for (a, b), at in zip(box, (first, *source.offsets[1:]), strict=True))
        target = tuple(slice(a - at, b - at) for (a, b), at in zip(box, shard.offsets, strict=True))
        shard.tensor[target] = rows[source_box].to(shard.tensor)
        copied += rows[source_box].numel()
    return copied


def read_blocks(folder: str, shard: SavedShard, low: int = 0, high: int | None = None) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows) of each block of a saved shard that has rows of [low, high); the tensor is used again.

    Raises:
        DamagedFile: the file is gone, cut short, or has another content.
    """
    url = storage.join(folder, shard.file)
    fs, path = storage.filesystem(url)
    buffer = memoryview(bytearray(min(shard.nbytes, max(BLOCK_BYTES, shard.row_bytes))))
    try:
        with fs.open(path, "rb") as file:
            for number, (start, stop) in enumerate(blocks(shard)):
                if stop <= low or (high is not None and start >= high):
                    continue
                block = buffer[: (stop - start) * shard.row_bytes]
                file.seek(shard.begin + start * shard.row_bytes)
                if not _read_into(file, block) or checksum(block) != shard.checksums[number]:
                    raise DamagedFile(f"{url} is damaged: rows of {shard.name} are not what was saved")
                yield start, torch.frombuffer(block, dtype=_DTYPES[shard.dtype]).view(stop - start, *shard.sizes[1:])
    except FileNotFoundError:
        raise DamagedFile(f"{url} is missing") from None


def _read_into(file: BinaryIO, block: memoryview) -> bool:
    """Fill the block; whether there was enough."""
    while block:
        got = file.readinto(block)  # type: ignore[attr-defined]
        if not got:
            return False
        block = block[got:]
    return True


def check_header(folder: str, shards: Sequence[SavedShard]) -> None:
    """Check the beginning of a file against its records.

    Raises:
        DamagedFile: it is another file.
    """
    url = storage.join(folder, shards[0].file)
    fs, path = storage.filesystem(url)
    wanted = _header(shards, min(shard.begin for shard in shards))
    if not fs.exists(path) or fs.cat_file(path, 0, len(wanted)) != wanted:
        raise DamagedFile(f"{url} is damaged or missing: it does not begin as the file that was saved")
