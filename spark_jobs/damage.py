"""Say in one line why an input cannot be read: which files are missing, truncated or damaged."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from gzip import GzipFile
from os.path import abspath

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import SparkSession

from pad_dist import storage
from pad_dist.dataset.lineage import input_files
from pad_dist.errors import UserError

DAMAGE = (EOFError, OSError, zlib.error, pa.ArrowInvalid)
"""What reading a truncated or damaged file raises. An OSError with a number comes from the file system instead."""

_BLOCK = 1 << 20


@contextmanager
def reading(url: str) -> Iterator[None]:
    """Turn failures to find or read `url` inside the block into a UserError that names the damaged files.

    Frames are lazy: put the actions that scan the input inside too.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Py4JJavaError or PySparkException, by when Spark notices
        text = str(error)
        if "[PATH_NOT_FOUND]" in text or "FILE_NOT_EXIST]" in text:
            raise missing(url) from None
        if "[FAILED_READ_FILE" in text:
            file = re.search(r"while reading file (\S+?)\.?\s", text)
            causes = re.findall(r"Caused by: [\w.$]*?(\w+): ([^\n]+)", text)
            cause = f" ({causes[-1][0]}: {causes[-1][1].strip()})" if causes else ""
            raise unreadable(url, f"{file[1] if file else 'a file'} is truncated or damaged{cause}") from None
        raise


def unreadable(url: str, seen: str) -> UserError:
    """The error that names every damaged file of `url`; `seen` says what failed, if no file looks damaged."""
    spark, files = SparkSession.active(), list(input_files(url))
    # The executors read every file to its end, but only after a failure.
    damaged = spark.sparkContext.parallelize(files, max(1, len(files))).filter(is_damaged).collect()
    if damaged:
        which = "is" if len(damaged) == 1 else f"({len(damaged)} of {len(files)} files) are"
        seen = f"{some(damaged)} {which} truncated or damaged"
    them = "them" if len(damaged) > 1 else "it"
    return UserError(f"{url} cannot be read, {seen}: copy {them} again")


def is_damaged(file: str) -> bool:
    """Whether a gzip or Parquet file cannot be read to its end; other files carry no checksum to tell by."""
    fs, path = storage.filesystem(file)
    try:
        with fs.open(path, "rb") as raw:
            if path.endswith(".gz"):
                with GzipFile(fileobj=raw) as unpacked:
                    while unpacked.read(_BLOCK):
                        pass
            elif path.endswith(".parquet"):
                for _ in pq.ParquetFile(raw).iter_batches():
                    pass
    except DAMAGE as error:
        return not isinstance(error, OSError) or error.errno is None
    return False


def missing(url: str) -> UserError:
    """The error for an input that does not exist; it lists the contents of the input's folder."""
    folder = url.rstrip("/").rpartition("/")[0] or "."
    holds = f"holds {some(_listing(folder))}" if storage.exists(folder) else "does not exist either"
    return UserError(f"{url} does not exist; {folder} {holds}")


def absolute(url: str) -> str:
    """A plain local path as a file:// URL, so that Spark and fsspec mean the same file; URLs stay as they are."""
    return url if "://" in url else "file://" + abspath(url)


def some(names: Sequence[str], most: int = 20) -> str:
    """The names as a list for a message, cut after `most`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + more


def _listing(url: str) -> list[str]:
    fs, path = storage.filesystem(absolute(url))
    return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in fs.ls(path, detail=False))
