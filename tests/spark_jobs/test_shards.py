"""What is written does not depend on how the rows were batched."""

import random
from collections.abc import Iterator

import pyarrow as pa
import pytest

from spark_jobs.shards import clean_text, regroup, users_of

EVENTS = pa.table({"user_key": ["a"] * 5 + ["b"] + ["c"] * 3 + ["d"] * 9 + ["é"], "item_index": range(19)})
GROUPED = {
    "user_key": ["a", "b", "c", "d", "é"],
    "items": [[0, 1, 2, 3, 4], [5], [6, 7, 8], [9, 10, 11, 12, 13, 14, 15, 16, 17], [18]],
}


def pieces(table: pa.Table, seed: int) -> Iterator[pa.Table]:
    cuts = sorted(random.Random(seed).sample(range(1, len(table)), seed))
    for start, end in zip([0, *cuts], [*cuts, len(table)], strict=True):
        yield table.slice(start, end - start)


@pytest.mark.parametrize("seed", range(0, 19, 3))
def test_users_are_grouped_over_any_batches(seed: int) -> None:
    batches = (batch for piece in pieces(EVENTS, seed) for batch in piece.to_batches())
    assert pa.concat_tables(users_of(batches)).to_pydict() == GROUPED


@pytest.mark.parametrize("seed", range(0, 19, 3))
def test_row_groups_are_full_and_contiguous_over_any_batches(seed: int) -> None:
    groups = list(regroup(pieces(EVENTS, seed), 4))
    assert [len(group) for group in groups] == [4, 4, 4, 4, 3]
    assert {column.num_chunks for group in groups for column in group.columns} == {1}
    assert pa.concat_tables(groups) == EVENTS


def test_no_rows_make_no_groups() -> None:
    assert list(users_of(iter([]))) == []
    assert list(regroup(iter([]), 4)) == []


def test_text_is_unescaped_and_white_space_collapsed() -> None:
    assert clean_text("  Crabtree &amp; Evelyn\n\t5 &quot; ") == 'Crabtree & Evelyn 5 "'
    assert clean_text("&nbsp; ") == clean_text(None) == ""
