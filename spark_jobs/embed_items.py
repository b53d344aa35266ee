"""Embed the item texts of a dataset's current version with a language model (docs/method.md, "Text").

    spark-submit spark_jobs/embed_items.py --config configs/demo.yaml [section.key=value ...]

A range of `text.rows_per_shard` items is one file and the unit of work (see
`spark_jobs.text_shards`), so the content does not depend on executors or partitions.
A rerun keeps existing files: after an interruption, or when the dataset has grown, the
model embeds only texts that no file holds yet. With `text.reduce` or int8 rows a second
pass makes that form of the raw vectors, which stay.

A task that gets a GPU from Spark (spark.task.resource.gpu.amount) runs the model on it.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pyspark import TaskContext
from pyspark.sql import Row, SparkSession
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pad_dist import storage
from pad_dist.config import Config, TextConfig
from pad_dist.dataset import versions
from pad_dist.dataset.manifest import FileEntry, Manifest, read_manifest, verify_file
from pad_dist.dataset.text_table import BUILD_COMMAND, TEXT, manifest_url, read_text_manifest, recipe_name
from pad_dist.errors import UserError
from spark_jobs.inputs import absolute
from spark_jobs.job import run_job, task_errors
from spark_jobs.text_encoder import model_revision
from spark_jobs.text_reduction import Sums, fit, in_sample, load_reduction, save_reduction, sums_of
from spark_jobs.text_shards import Shard, Source, convert_shard, digest_of, embed_range, raw_rows

_MAX_TASKS = 10_000
_FIT_TASKS = 4
"""Fixed, so that sums are added in one order. The driver holds the moments of each task, 8 dim^2 bytes."""


def embed_items(config: Config, spark: SparkSession) -> Manifest:
    """Give every item of `config.dataset` (a root or a version) its vector; returns the text manifest.

    Groups: "text" (what training reads), "raw" and "reduction" (where the form of the
    vectors differs from the model's). `lineage["embedded"]` counts the texts that the
    model has embedded this time.

    Raises:
        UserError: there is no dataset, a file differs from its manifest, the model cannot be
            loaded or has changed under the same name, or a store fails.
    """
    version = versions.resolve(absolute(config.dataset))
    with task_errors(versions.root_of(version)):
        return _embed(config.text, version, spark)


def _embed(text: TextConfig, version: str, spark: SparkSession) -> Manifest:
    root = versions.root_of(version)
    dataset = read_manifest(version, BUILD_COMMAND)
    revision = model_revision(text)
    before = _last_manifest(root, version, text)
    if before:
        _check_same_model(before, text, revision)
    source = Source(root, version, tuple(dataset.groups["items"]), text, revision, _present(root))
    items, size = dataset.counts["items"], text.rows_per_shard

    def embed(number: int) -> Shard:
        first = 1 + number * size
        shard = embed_range(source, first, min(first + size, items + 1), _claim_device())
        # Spark's worker collects garbage after each task; a loaded model makes that take 0.1 s.
        gc.freeze()
        return shard

    shards = _shards(spark, "embed", embed, -(-items // size), items)
    embedded = sum(shard.embedded for shard in shards)
    groups = {TEXT: [shard.entry for shard in shards]}
    if text.reduce.kind != "none" or text.dtype != "float16":
        raw, reduction, fitted = groups[TEXT], None, None
        if text.reduce.kind != "none":
            fitted = _reduction(spark, source, raw, shards[0].dim, before)
            reduction = load_reduction(storage.join(root, fitted.path))
            groups["reduction"] = [fitted]
        recipe = [source.recipe, text.dtype, fitted and fitted.sha256]

        def convert(number: int) -> Shard:
            return convert_shard(root, raw[number], recipe, reduction, text.dtype)

        shards = _shards(spark, "convert", convert, len(raw), items)
        groups |= {"raw": raw, TEXT: [shard.entry for shard in shards]}
    manifest = Manifest(
        counts={"items": items, "dim": shards[0].dim},
        parameters={
            **source.recipe,
            "reduce": text.reduce.model_dump(mode="json"),
            "dtype": text.dtype,
            "dataset": dataset.content_hash(),
        },
        groups=groups,
        lineage={"embedded": embedded},
    )
    storage.write_json(manifest_url(version, text), manifest.model_dump())
    return manifest


def _last_manifest(root: str, version: str, text: TextConfig) -> Manifest | None:
    """The text manifest for this recipe, of the newest version that has one."""
    published = [versions.version_url(root, name) for name in reversed(versions.published(root))]
    urls = [manifest_url(url, text) for url in published or [version]]
    newest = next((url for url in urls if storage.exists(url)), None)
    return read_text_manifest(newest) if newest else None


def _check_same_model(before: Manifest, text: TextConfig, revision: str) -> None:
    known = before.parameters["revision"]
    if known != revision:
        raise UserError(
            f"text.model={text.model} is revision {revision} now, the vectors in {recipe_name(text)} are of {known}: "
            f"vectors of two models do not mix, set text.revision={revision} to embed everything anew"
        )


def _present(root: str) -> tuple[str, ...]:
    """Names of the files in `<root>/text`."""
    fs, path = storage.filesystem(storage.join(root, TEXT))
    fs.invalidate_cache()
    files = fs.ls(path, detail=False) if fs.isdir(path) else []
    return tuple(sorted(str(file).rsplit("/", 1)[-1] for file in files))


def _reduction(
    spark: SparkSession, source: Source, raw: list[FileEntry], dim: int, before: Manifest | None
) -> FileEntry:
    """The file of the dataset's reduction; fitted first if it does not exist yet."""
    reduce = source.text.reduce
    path = f"{TEXT}/reduction-{digest_of(source.recipe, reduce.model_dump())[:8]}.safetensors"
    url = storage.join(source.root, path)
    if before:
        verify_file(source.root, before.groups["reduction"][0])
    elif not storage.exists(url):
        save_reduction(url, fit(_moments(spark, source.root, raw, dim, reduce.sample_rows), reduce))
    fs, plain = storage.filesystem(url)
    return FileEntry(path=path, rows=dim, bytes=fs.size(plain), sha256=storage.sha256(url))


def _moments(spark: SparkSession, root: str, raw: list[FileEntry], dim: int, sample_rows: int) -> Sums:
    """Moments of a sample of about `sample_rows` rows that have a text."""
    share = sample_rows / sum(entry.rows for entry in raw)
    parts = np.array_split(np.arange(len(raw)), min(_FIT_TASKS, len(raw)))

    def sampled(entry: FileEntry) -> NDArray[np.float16]:
        hashes, rows = raw_rows(root, entry)
        return rows[in_sample(hashes, share) & rows.any(axis=1)]

    def work(part: int) -> dict[str, Any]:
        sums = sums_of((sampled(raw[number]) for number in parts[part]), dim)
        return {"rows": sums.rows, "total": sums.total.tobytes(), "products": sums.products.tobytes()}

    task_sums = _run(spark, work, len(parts), "rows long, total binary, products binary")
    return Sums(
        sum(row.rows for row in task_sums),
        np.sum([np.frombuffer(row.total) for row in task_sums], axis=0),
        np.sum([np.frombuffer(row.products).reshape(dim, dim) for row in task_sums], axis=0),
    )


def _shards(spark: SparkSession, label: str, work: Callable[[int], Shard], count: int, items: int) -> list[Shard]:
    """Run `work(0)`, `work(1)` ... in executors and show progress."""
    done = spark.sparkContext.accumulator(0)

    def counted(number: int) -> dict[str, Any]:
        shard = work(number)
        done.add(shard.entry.rows)
        return {"shard": shard.model_dump_json()}

    with _progress(label, items, lambda: int(done.value)):
        return [Shard.model_validate_json(row.shard) for row in _run(spark, counted, count, "shard string")]


def _run(spark: SparkSession, work: Callable[[int], dict[str, Any]], count: int, schema: str) -> list[Row]:
    """Run `work(0)`, `work(1)` ... in executors; returns their rows in that order."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for number in (int(value) for batch in batches for value in batch.column("id").to_pylist()):
            yield pa.RecordBatch.from_pylist([{"id": number, **work(number)}])

    rows = spark.range(0, count, 1, min(count, _MAX_TASKS)).mapInArrow(run, f"id long, {schema}").collect()
    return sorted(rows, key=lambda row: int(row.id))


def _claim_device() -> str:
    """The GPU that Spark gave this task, or the CPU with as many threads as the task has cores."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    task = TaskContext.get()
    assert task is not None
    torch.set_num_threads(task.cpus())
    gpu = task.resources().get("gpu")
    return f"cuda:{gpu.addresses[0]}" if gpu else "cpu"


@contextmanager
def _progress(label: str, total: int, done: Callable[[], int]) -> Iterator[None]:
    """Items done, items/s and time left on stderr, from tasks that have ended."""
    columns = [BarColumn(), MofNCompleteColumn(), TextColumn("items, {task.fields[rate]:.0f}/s"), TimeRemainingColumn()]
    stop = threading.Event()
    with Progress(label, *columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=total, rate=0.0)

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
    counts, embedded = manifest.counts, manifest.lineage["embedded"]
    return (
        f"{config.dataset}: text table {recipe_name(config.text)}, {counts['items']:,} x {counts['dim']}, "
        f"{embedded:,} texts embedded now (content {manifest.content_hash()[:12]})"
    )


if __name__ == "__main__":
    # Executors find the functions by their module's name, which __main__ is not.
    from spark_jobs import embed_items as module

    module.main()
