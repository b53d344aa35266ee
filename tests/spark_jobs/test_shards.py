"""Row groups and counts do not depend on how the rows were batched."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_jobs import shards
from spark_jobs.histories import EVENTS


def histories_of(lengths: list[int]) -> pa.Table:
    items = [list(range(length)) for length in lengths]
    return pa.table([[f"u{n:03}" for n in range(len(lengths))], items, items], schema=EVENTS)


@pytest.mark.parametrize("seed", range(6))
def test_row_groups_hold_a_fixed_number_of_rows_or_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(shards, "ROWS_PER_GROUP", 4)
    monkeypatch.setattr(shards, "EVENTS_PER_GROUP", 20)
    table = histories_of([1, 2, 3, 4, 5, 30, 1, 19, 1, 1, 1, 1, 1, 20, 2])
    cuts = sorted(random.Random(seed).sample(range(1, len(table)), seed * 2))
    with shards._ShardFile(str(tmp_path), "events", 0, EVENTS) as file:
        for start, stop in zip([0, *cuts], [*cuts, len(table)], strict=True):
            part = table.slice(start, stop - start)
            file.add(part, {"parts": 1}, shards._events_in(part))
    parquet = pq.ParquetFile(tmp_path / "events" / "part-00000.parquet")
    assert [parquet.read_row_group(group).num_rows for group in range(parquet.num_row_groups)] == [4, 2, 2, 4, 2, 1]
    assert parquet.read().equals(table)
    written = file.written().to_pylist()[0]
    assert (written["rows"], written["counts"]) == (15, [("parts", len(cuts) + 1)])
    assert written["bytes"] == (tmp_path / written["path"]).stat().st_size


def test_counts_of_items_survive_compaction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_MAX_BACKLOG", 10)
    rng = np.random.default_rng(0)
    counts, seen = shards._ItemCounts(), []
    assert counts.table().num_rows == 0
    for _ in range(20):
        seen += (part := rng.integers(1, 30, rng.integers(0, 9))).tolist()
        counts.add(part)
    assert dict(zip(*counts.table().to_pydict().values(), strict=True)) == Counter(seen)


def test_text_is_unescaped_and_white_space_collapsed() -> None:
    assert shards.clean_text("  Crabtree &amp; Evelyn\n\t5 &quot; ") == 'Crabtree & Evelyn 5 "'
    assert shards.clean_text("&nbsp; ") == shards.clean_text(None) == ""
