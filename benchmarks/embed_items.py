"""Items embedded per second: our Spark job against sentence-transformers, the same model, titles, batches and cores.

    python -m benchmarks.embed_items [--titles items.csv.gz] [--items 4096] [--repeats 5]

Both are warm (Spark's workers run, models are loaded) and take turns in one process,
so that a busy machine slows both. The job counts whole: reading, planning, writing,
manifest. Needs sentence-transformers; leave OMP_NUM_THREADS unset, it gets every core.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.csv as pa_csv
import torch
from pyspark.sql import SparkSession
from sentence_transformers import SentenceTransformer

from pad_dist.config import Config
from pad_dist.config.load import parse_config
from pad_dist.dataset.synthetic import Catalogue
from pad_dist.dataset.text_table import read_text_rows
from spark_jobs.embed_items import embed_items
from spark_jobs.session import spark_session
from spark_jobs.shards import clean_text
from spark_jobs.text_encoder import model_source
from tests.support.item_files import publish_items


def main() -> None:
    """Print one line per repeat and a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--titles", help="CSV with a column title; default: synthetic titles")
    parser.add_argument("--items", type=int, default=4096, help="titles to embed, the first of the file")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16", help="ours; theirs is float32")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    titles = read_titles(args.titles, args.items)
    data, text = {"spark_master": f"local[{args.cores}]"}, {"precision": args.precision}
    config = parse_config({"name": "benchmark", "data": data, "text": text}, "benchmark")
    torch.set_num_threads(args.cores)
    other = SentenceTransformer(model_source(config.text)[0], device="cpu")
    other.max_seq_length = config.text.max_tokens
    spark = spark_session(config.data, "benchmark")
    # One text in each of many ranges reaches every worker.
    few = ["warm", *[""] * (config.text.rows_per_shard - 1)] * (4 * args.cores)
    seconds = np.empty((args.repeats, 2))
    least = 1.0
    with tempfile.TemporaryDirectory() as folder:
        print(f"{len(titles):,} titles, {len(set(titles)):,} distinct; {args.cores} cores, ours in {args.precision}")
        print(f"first job: {embed(spark, config, f'{folder}/first', few):.1f} s (workers start and load the model)")
        for repeat in range(args.repeats):
            for turn in (repeat % 2, 1 - repeat % 2):
                if turn == 0:  # Spark ends workers that were idle for a minute
                    embed(spark, config, f"{folder}/{repeat}-warm", few)
                    seconds[repeat, 0] = embed(spark, config, f"{folder}/{repeat}", titles)
                else:
                    started = time.perf_counter()
                    theirs = other.encode(titles, batch_size=config.text.batch_size, normalize_embeddings=True)
                    seconds[repeat, 1] = time.perf_counter() - started
            rows = read_text_rows(f"{folder}/{repeat}", config.text, 1, len(titles) + 1).astype(np.float64)
            least = min(least, float(((rows * theirs).sum(1) / np.linalg.norm(rows, axis=1)).min()))
            ours_s, theirs_s = seconds[repeat]
            print(f"{repeat}: ours {ours_s:.1f} s, theirs {theirs_s:.1f} s, ratio {theirs_s / ours_s:.2f}", flush=True)
    ours, theirs = np.median(len(titles) / seconds, axis=0)
    ratio = np.median(seconds[:, 1] / seconds[:, 0])
    print("| titles | ours, items/s | sentence-transformers, items/s | ratio | least cosine |\n|---|---|---|---|---|")
    print(f"| {len(titles):,} | {ours:.0f} | {theirs:.0f} | {ratio:.2f} | {least:.6f} |")
    spark.stop()


def read_titles(url: str | None, items: int) -> list[str]:
    """The first titles, cleaned as the ETL does."""
    if url is None:
        return Catalogue(items, 0).titles(np.arange(items))
    return [clean_text(title) for title in pa_csv.read_csv(url)["title"].to_pylist()[:items]]


def embed(spark: SparkSession, config: Config, root: str, titles: list[str]) -> float:
    """Seconds that the job takes on a new dataset of these titles."""
    publish_items(Path(root), titles, rows_per_file=65_536)
    started = time.perf_counter()
    embed_items(config.model_copy(update={"dataset": root}), spark)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
