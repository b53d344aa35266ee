"""Histories against plain Python: grouping, merging and cutting do not depend on batches."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pad_dist.config import SplitConfig
from spark_jobs.histories import EVENTS, SEQUENCES, Rules, histories, merged, sequences, train_items, without

Row = tuple[str, float, int]
"""User, time, item."""
KEYS = [f"k{(item * 37) % 101:03}" for item in range(30)]
LEAVE_ONE_OUT = Rules(3, None, None, SplitConfig())


def keys_of(items: Any) -> pa.Array:
    return pa.array([KEYS[item] for item in items.tolist()])


def random_rows(rng: random.Random, count: int) -> list[Row]:
    return [(f"u{rng.randrange(12)}", float(rng.randrange(6)), rng.randrange(30)) for _ in range(count)]


def batches(rows: list[Row], size: int) -> Iterator[pa.RecordBatch]:
    ordered = sorted(rows, key=lambda row: (row[0], row[1], KEYS[row[2]]))
    for start in range(0, len(ordered), size):
        user, time, item = zip(*ordered[start : start + size], strict=True)
        yield pa.record_batch({"user_key": user, "time": pa.array(time), "item_index": pa.array(item, pa.int64())})


def table(rows: list[Row], size: int = 1000) -> pa.Table:
    return pa.concat_tables([EVENTS.empty_table(), *histories(batches(rows, size))])


def plain(rows: list[Row]) -> dict[str, list[Any]]:
    """What histories of `rows` must be."""
    ordered = sorted(set(rows), key=lambda row: (row[0], row[1], KEYS[row[2]]))
    users = sorted({user for user, _, _ in ordered})
    return {
        "user_key": users,
        "times": [[time for user, time, _ in ordered if user == own] for own in users],
        "items": [[item for user, _, item in ordered if user == own] for own in users],
    }


@pytest.mark.parametrize("seed", range(20))
def test_histories_group_users_over_any_batches_and_drop_repeats(seed: int) -> None:
    rng = random.Random(seed)
    rows = random_rows(rng, rng.randrange(100))
    assert table(rows, rng.randrange(1, 9)).to_pydict() == plain(rows)


@pytest.mark.parametrize("seed", range(40))
def test_merging_equals_grouping_the_union(seed: int) -> None:
    rng = random.Random(seed)
    old, new = random_rows(rng, rng.randrange(80)), random_rows(rng, rng.randrange(40))
    parts = [histories(batches(rows, rng.randrange(1, 9))) for rows in (old, new)]
    tables = list(merged(*parts, keys_of))
    assert all(part.num_rows for part in tables)
    assert pa.concat_tables([EVENTS.empty_table(), *tables]).to_pydict() == plain(old + new)


def test_keys_are_asked_for_only_where_old_and_new_events_have_one_time() -> None:
    def never(items: Any) -> pa.Array:
        raise AssertionError(items)

    old, new = [("a", 1.0, 3), ("b", 1.0, 4), ("b", 1.0, 5)], [("a", 2.0, 3), ("c", 1.0, 1), ("c", 1.0, 2)]
    tables = merged(iter([table(old)]), iter([table(new)]), never)
    assert pa.concat_tables(tables).to_pydict() == plain(old + new)


def test_users_merge_in_the_order_of_their_bytes() -> None:
    old, new = [("Z", 1.0, 1), ("é", 1.0, 1), ("\U0001f600", 1.0, 2)], [("a", 1.0, 1), ("\uffee", 1.0, 3)]
    tables = merged(iter([table(old)]), iter([table(new)]), keys_of)
    assert pa.concat_tables(tables)["user_key"].to_pylist() == ["Z", "a", "é", "\uffee", "\U0001f600"]


@pytest.mark.parametrize("seed", range(5))
def test_erasing_leaves_what_others_have(seed: int) -> None:
    rng = random.Random(seed)
    rows = random_rows(rng, 90)
    left = [row for row in rows if row[0] not in ("u1", "u7") and row[2] not in (2, 3, 5)]
    assert without(table(rows), pa.array(["u7", "u1", "u99"]), np.array([5, 2, 3])).to_pydict() == plain(left)
    assert without(table([("u1", 1.0, 2)]), pa.array([], pa.string()), np.array([2])).num_rows == 0


def cut(rules: Rules, *histories_: list[tuple[float, int]]) -> list[tuple[list[int], int, int, int]]:
    rows = [(f"u{number}", time, item) for number, history in enumerate(histories_) for time, item in history]
    found = sequences(table(rows), rules)
    assert found.schema.equals(SEQUENCES)
    return [(row["items"], row["train"], row["valid"], row["test"]) for row in found.to_pylist()]


def test_leave_one_out_holds_out_the_last_two() -> None:
    history = [(float(t), 10 + t) for t in range(5)]
    assert cut(LEAVE_ONE_OUT, history, history[:2], history[:3]) == [
        ([10, 11, 12, 13, 14], 3, 3, 4),
        ([10, 11, 12], 1, 1, 2),
    ]


def test_long_histories_keep_their_last_events() -> None:
    rules = Rules(3, 5, 4, SplitConfig())
    whole, long = ([(float(t), t) for t in range(n)] for n in (5, 6))
    assert cut(rules, whole, long) == [([0, 1, 2, 3, 4], 3, 3, 4), ([2, 3, 4, 5], 2, 2, 3)]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([1, 2, 3, 9, 10, 15, 20, 30], (4, 5, 7)),  # the last event of each window, the bound itself is after it
        ([1, 2, 3], (3, -1, -1)),  # a user who left
        ([11, 12, 13], (0, 2, -1)),  # one who came later
        ([10, 20, 21], (0, -1, 2)),  # a target needs an item before it
        ([1, 10, 20], (1, 1, 2)),
    ],
)
def test_a_time_split_holds_out_the_last_event_of_each_window(times: list[int], expected: tuple[int, int, int]) -> None:
    rules = Rules(3, None, None, SplitConfig(kind="time", valid_from=10, test_from=20))
    (found,) = cut(rules, [(float(time), place) for place, time in enumerate(times)])
    assert found[1:] == expected


def test_a_time_split_follows_the_cap() -> None:
    rules = Rules(3, 3, 2, SplitConfig(kind="time", valid_from=10, test_from=20))
    assert cut(rules, [(1.0, 0), (2.0, 1), (10.0, 2), (20.0, 3)]) == [([2, 3], 0, -1, 1)]


def test_train_items_are_those_before_the_held_out_ones() -> None:
    rules = Rules(3, None, None, SplitConfig())
    rows = [("a", float(t), t) for t in range(4)] + [("b", float(t), 9 - t) for t in range(5)]
    assert train_items(sequences(table(rows), rules)).tolist() == [0, 1, 9, 8, 7]
    assert train_items(sequences(table(rows[:2]), rules)).tolist() == []
