"""Item texts to language-model vectors: `<dataset>/text/`, float16 (METHOD, text).

    spark-submit spark_jobs/embed_items.py --config configs/demo.yaml [section.key=value ...]

One output file holds a fixed range of `text.rows_per_shard` item indices and is the
unit of work, so its content does not depend on executors or partitions. A row keeps
the hash of its text and model: rows that a previous run left in the same file are
taken over, so an interrupted run goes on and a changed text costs one row. Indices
follow the sorted item keys: a new item moves all later ones up by one, and a row
that so comes into the next file is embedded again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pyspark import TaskContext
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pad_dist import storage
from pad_dist.config import Config, TextConfig
from pad_dist.data.manifest import FileEntry, Manifest, read_manifest, verify_file, write_manifest
from pad_dist.data.text_table import BUILD_COMMAND, text_url, vectors
from pad_dist.errors import UserError
from spark_jobs.inputs import absolute
from spark_jobs.job import run_job
from spark_jobs.text_encoder import load_encoder, model_revision

_MAX_TASKS = 10_000


def embed_items(config: Config, spark: SparkSession) -> Manifest:
    """Embed every item of `config.dataset` and return the manifest of `<dataset>/text`.

    Raises:
        UserError: no dataset, a file that differs from its manifest, or a model that
            cannot be loaded.
    """
    dataset_url = absolute(config.dataset)
    dataset = read_manifest(dataset_url, BUILD_COMMAND)
    url, items, rows = text_url(dataset_url), dataset.counts["items"], config.text.rows_per_shard
    recipe = {
        "model": config.text.model,
        "gguf_file": config.text.gguf_file,
        "revision": model_revision(config.text),
        "pooling": config.text.pooling,
        "bidirectional": config.text.bidirectional,
        "max_tokens": config.text.max_tokens,
    }
    # Until the new manifest is there, nothing may vouch for a half-replaced table.
    storage.remove(storage.join(url, "manifest.json"))
    shards = -(-items // rows)
    done = spark.sparkContext.accumulator(0)
    sources = dataset.groups["items"]
    text = config.text

    def embed(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for shard in (int(number) for batch in batches for number in batch.column("id").to_pylist()):
            entry, dim = _embed_shard(dataset_url, sources, shard, min(rows, items - shard * rows), text, recipe)
            done.add(entry.rows)
            yield pa.RecordBatch.from_pylist([{"entry": entry.model_dump_json(), "dim": dim}])

    tasks = spark.range(0, shards, 1, min(shards, _MAX_TASKS))
    try:
        with _progress(items, lambda: int(done.value)):
            results = tasks.mapInArrow(embed, "entry string, dim long").collect()
    except PySparkException as error:
        if told := re.search(r"UserError: (.*)", str(error)):
            raise UserError(told[1]) from None
        raise
    entries = sorted(
        (FileEntry.model_validate_json(row.entry) for row in results), key=lambda entry: entry.first_index or 0
    )
    manifest = Manifest(
        counts={"items": items, "dim": results[0].dim},
        parameters={**recipe, "dataset": dataset.content_hash()},
        groups={"text": entries},
    )
    write_manifest(url, manifest)
    return manifest


def _embed_shard(
    dataset_url: str, sources: list[FileEntry], shard: int, rows: int, config: TextConfig, recipe: dict[str, Any]
) -> tuple[FileEntry, int]:
    """Make one output file, in an executor; returns its entry and the width of its vectors."""
    first = 1 + shard * config.rows_per_shard
    texts = _texts(dataset_url, sources, first, first + rows)
    prefix = json.dumps(recipe, sort_keys=True)
    hashes = [hashlib.sha256(f"{prefix}\n{text}".encode()).hexdigest() for text in texts]
    name = f"part-{shard:05d}.parquet"
    path = storage.join(text_url(dataset_url), name)
    present, table = _present_rows(path)
    known = dict(zip(present, table, strict=True))
    missing = [i for i, key in enumerate(hashes) if key not in known]
    if missing:
        vector_of = load_encoder(config, recipe["revision"], _claim_device()).encode([texts[i] for i in missing])
        known.update(zip((hashes[i] for i in missing), vector_of.astype(np.float16), strict=True))
    if present != hashes:
        table = np.stack([known[key] for key in hashes])
        _write_rows(path, first, table, hashes)
    fs, plain = storage.filesystem(path)
    entry = FileEntry(path=name, rows=rows, bytes=fs.size(plain), sha256=storage.sha256(path), first_index=first)
    return entry, table.shape[1]


def _texts(dataset_url: str, sources: list[FileEntry], start: int, stop: int) -> list[str]:
    """Texts of item_index start..stop-1, from the files that overlap the range."""
    texts: list[str] = []
    for source in sources:
        first = source.first_index or 1
        if first < stop and start < first + source.rows:
            found = _source_texts(dataset_url, source)
            texts += found[max(start - first, 0) : stop - first]
    if len(texts) != stop - start:
        raise UserError(f"{dataset_url} lists no texts for items {start}..{stop - 1}: run `{BUILD_COMMAND}` again")
    return texts


@lru_cache(maxsize=1)
def _source_texts(dataset_url: str, source: FileEntry) -> list[str]:
    """Texts of one items file; neighbouring shards read the same file, so the last one is kept."""
    verify_file(dataset_url, source)
    fs, path = storage.filesystem(storage.join(dataset_url, source.path))
    with fs.open(path, "rb") as file:
        table = pq.read_table(file, columns=["item_index", "text"])
    first = source.first_index or 1
    if not np.array_equal(table["item_index"].to_numpy(), np.arange(first, first + source.rows)):
        raise UserError(f"{path} does not hold items {first}..{first + source.rows - 1}: run `{BUILD_COMMAND}` again")
    texts: list[str] = table["text"].to_pylist()
    return texts


def _present_rows(path: str) -> tuple[list[str], NDArray[np.float16]]:
    """Hashes and vectors that an earlier run left at `path`; none if it is absent or fails its page checksums."""
    if storage.exists(path):
        fs, plain = storage.filesystem(path)
        try:
            with fs.open(plain, "rb") as file:
                table = pq.ParquetFile(file, page_checksum_verification=True).read()
            return table["content_hash"].to_pylist(), vectors(table["embedding"])
        except (pa.ArrowException, OSError, KeyError):
            pass  # a damaged file is made again
    return [], np.empty((0, 0), np.float16)


def _write_rows(path: str, first: int, table: NDArray[np.float16], hashes: list[str]) -> None:
    columns = {
        "item_index": pa.array(np.arange(first, first + len(table), dtype=np.int64)),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(table.reshape(-1)), table.shape[1]),
        "content_hash": pa.array(hashes, pa.string()),
    }
    with storage.atomic_writer(path) as file:
        pq.write_table(pa.table(columns), file, compression="zstd", write_page_checksum=True)


def _claim_device() -> str:
    """The GPU that Spark gave this task, or the CPU with as many threads as the task has cores."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    task = TaskContext.get()
    assert task is not None
    torch.set_num_threads(task.cpus())
    gpu = task.resources().get("gpu")
    return f"cuda:{gpu.addresses[0]}" if gpu else "cpu"


@contextmanager
def _progress(total: int, done: Callable[[], int]) -> Iterator[None]:
    """Items done, items/s and time left on stderr, from tasks that have ended."""
    columns = [BarColumn(), MofNCompleteColumn(), TextColumn("items, {task.fields[rate]:.0f}/s"), TimeRemainingColumn()]
    stop = threading.Event()
    with Progress("embed", *columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("embed", total=total, rate=0.0)

        def show() -> None:
            progress.update(task, completed=done(), rate=done() / (progress.tasks[task].elapsed or 1.0))

        def watch() -> None:
            while not stop.wait(0.5):
                show()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            show()


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    run_job("embed_items", "Embed the item texts of a dataset with a language model.", _embed_and_tell, arguments)


def _embed_and_tell(config: Config, spark: SparkSession) -> str:
    manifest = embed_items(config, spark)
    counts, content = manifest.counts, manifest.content_hash()[:12]
    return f"{text_url(config.dataset)}: {counts['items']:,} x {counts['dim']} (content {content})"


if __name__ == "__main__":
    # Executors find the functions by their module's name, which __main__ is not.
    from spark_jobs import embed_items as module

    module.main()
