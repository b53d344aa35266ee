"""Histories as Arrow tables: group sorted events by user, merge old and new, cut training sequences.

Everything here is a pure function of rows, whatever batches they come in. A history
table holds complete users in ascending order of their keys (UTF-8 bytes). The events of
a user are in order of time, at equal times in order of item key, each event once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pad_dist.config import DataConfig, SplitConfig
from pad_dist.dataset.reader import ranges

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Tables = Iterator[pa.Table]
KeysOf = Callable[[Ints], pa.Array]
"""item_index [n], any order, with repeats -> item keys [n]."""

EVENTS = pa.schema(
    [("user_key", pa.string()), ("times", pa.list_(pa.float64())), ("items", pa.list_(pa.int64()))],
)
SEQUENCES = pa.schema(
    [
        ("user_key", pa.string()),
        ("items", pa.list_(pa.int64())),
        ("train", pa.int32()),
        ("valid", pa.int32()),
        ("test", pa.int32()),
    ]
)


def histories(batches: Iterable[pa.RecordBatch]) -> Tables:
    """Group event rows (user_key, time, item_index), in order of user, time and item key, into histories.

    A user may span batches. An event that repeats the previous one is dropped.
    """
    pending: list[pa.Table] = []
    for batch in batches:
        if not batch.num_rows:
            continue
        pending.append(pa.Table.from_batches([batch]))
        if pending[0]["user_key"][0] == pending[-1]["user_key"][-1]:
            continue  # still the same user
        table = pa.concat_tables(pending)
        last = int(_starts(table["user_key"].combine_chunks())[-1])
        yield _by_user(table.slice(0, last))
        pending = [table.slice(last)]
    if pending:
        yield _by_user(pa.concat_tables(pending))


def merged(old: Tables, new: Tables, keys_of: KeysOf) -> Tables:
    """Merge two streams of histories; a user in both gets the events of both, a repeated one once."""
    first, second = next(old, None), next(new, None)
    while first is not None and second is not None:
        # Users up to here are complete in both.
        bound = min(first["user_key"][-1].as_py().encode(), second["user_key"][-1].as_py().encode()).decode()
        (left, first), (right, second) = _split(first, bound), _split(second, bound)
        if left.num_rows and right.num_rows:
            yield _combined(left, right, keys_of)
        else:
            yield left if left.num_rows else right
        first = first if first.num_rows else next(old, None)
        second = second if second.num_rows else next(new, None)
    for rest, stream in ((first, old), (second, new)):
        if rest is not None:
            yield rest
            yield from stream


def without(table: pa.Table, users: pa.Array, items: Ints) -> pa.Table:
    """The histories without erased users and without the events of erased items; empty ones are dropped."""
    if len(users):
        table = table.filter(pc.invert(pc.is_in(table["user_key"], users)))
    if not len(items) or not table.num_rows:
        return table
    keys, lengths, times, values = _flat(table)
    kept = ~np.isin(values, items)
    return _table(keys, np.repeat(np.arange(len(lengths)), lengths)[kept], times[kept], values[kept])


@dataclass(frozen=True)
class Rules:
    """How sequences are cut from histories; see the keys of `data` with the same names."""

    min_interactions: int
    max_history: int | None
    keep_last: int | None
    split: SplitConfig

    @classmethod
    def of(cls, data: DataConfig) -> Rules:
        """The rules that a config sets."""
        return cls(data.min_interactions, data.max_history, data.keep_last, data.split)


def sequences(table: pa.Table, rules: Rules) -> pa.Table:
    """Sequences of the users with enough events: user_key, items, train, valid, test.

    See docs/method.md, "Data and split".
    """
    keys, lengths, times, items = _flat(table)
    train, valid, test = _held_out(lengths, times, rules.split)
    kept = np.flatnonzero(lengths >= rules.min_interactions)
    dropped = np.zeros_like(lengths)
    if rules.max_history is not None and rules.keep_last is not None:
        dropped = np.where(lengths > rules.max_history, lengths - rules.keep_last, 0)
    starts = np.cumsum(lengths) - lengths + dropped
    left = lengths - dropped

    def place(target: Ints) -> pa.Array:
        # A target needs an item before it.
        return pa.array(np.where(target - dropped > 0, target - dropped, -1)[kept].astype(np.int32))

    values = items[ranges(starts[kept], left[kept])]
    columns = {
        "user_key": keys.take(pa.array(kept)),
        "items": _lists(left[kept], values),
        "train": pa.array(np.maximum(train - dropped, 0)[kept].astype(np.int32)),
        "valid": place(valid),
        "test": place(test),
    }
    return pa.table(columns, SEQUENCES)


def train_items(table: pa.Table) -> Ints:
    """Items of the train parts of sequences, end to end."""
    lengths, train = (_numpy(column) for column in (pc.list_value_length(table["items"]), table["train"]))
    values = _numpy(pc.list_flatten(table["items"]))
    return values[ranges(np.cumsum(lengths) - lengths, train)]


def _held_out(lengths: Ints, times: Floats, split: SplitConfig) -> tuple[Ints, Ints, Ints]:
    """Per user: number of train events, places of the two targets (-1: none)."""
    if split.kind == "leave_one_out":
        return lengths - 2, lengths - 2, lengths - 1
    if not len(lengths):
        return lengths, lengths, lengths
    starts = np.cumsum(lengths) - lengths
    bounds = np.array([split.valid_from, split.test_from], np.float64)
    train, seen = (np.add.reduceat((times < bound).astype(np.int64), starts) for bound in bounds)
    return train, np.where(seen > train, seen - 1, -1), np.where(lengths > seen, lengths - 1, -1)


def _split(table: pa.Table, bound: str) -> tuple[pa.Table, pa.Table]:
    size = int(pc.sum(pc.less_equal(table["user_key"], bound)).as_py())
    return table.slice(0, size), table.slice(size)


def _combined(old: pa.Table, new: pa.Table, keys_of: KeysOf) -> pa.Table:
    parts = [_flat(old), _flat(new)]
    users = pa.concat_arrays([part[0] for part in parts]).unique()
    users = users.take(pc.array_sort_indices(users))
    user = np.concatenate([np.repeat(_numpy(pc.index_in(part[0], users)), part[1]) for part in parts]).astype(np.int64)
    time, item = (np.concatenate([part[n] for part in parts]) for n in (2, 3))
    is_new = np.arange(len(item)) >= len(parts[0][3])
    order = np.lexsort((time, user))  # stable: among equals the old ones come first
    user, time, item, is_new = user[order], time[order], item[order], is_new[order]
    return _table(users, user, time, _in_key_order(user, time, item, is_new, keys_of))


def _in_key_order(user: Ints, time: Floats, item: Ints, is_new: NDArray[np.bool_], keys_of: KeysOf) -> Ints:
    """Sort items by key where old and new events of a user have the same time; each side is already sorted."""
    starts = np.flatnonzero(_changes(user, time))
    sizes = np.diff(np.append(starts, len(user)))
    new = np.add.reduceat(is_new.astype(np.int64), starts)
    mixed = (new > 0) & (new < sizes)
    places = ranges(starts[mixed], sizes[mixed])
    if len(places):
        run = np.repeat(np.arange(int(mixed.sum())), sizes[mixed])
        order = pc.sort_indices(
            pa.table({"run": run, "key": keys_of(item[places])}), [("run", "ascending"), ("key", "ascending")]
        )
        item = item.copy()
        item[places] = item[places[order.to_numpy()]]
    return item


def _by_user(rows: pa.Table) -> pa.Table:
    keys = rows["user_key"].combine_chunks()
    starts = _starts(keys)
    user = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(keys))))
    return _table(keys.take(pa.array(starts)), user, _numpy(rows["time"]), _numpy(rows["item_index"]))


def _table(users: pa.Array, user: Ints, time: Floats, item: Ints) -> pa.Table:
    """Histories of sorted events without repeats; `user` [n] indexes `users`, of which some may have no events."""
    once = _changes(user, time, item)
    user, time, item = user[once], time[once], item[once]
    lengths = np.bincount(user, minlength=len(users))
    kept = np.flatnonzero(lengths)
    columns = [users.take(pa.array(kept)), _lists(lengths[kept], time), _lists(lengths[kept], item)]
    return pa.table(columns, schema=EVENTS)


def _changes(*columns: NDArray[Any]) -> NDArray[np.bool_]:
    """[n] whether a row differs from the previous one in any column."""
    changes = np.ones(len(columns[0]), bool)
    if len(changes):
        changes[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return changes


def _starts(users: pa.Array) -> Ints:
    """Places where a new user begins."""
    changes = pc.not_equal(users.slice(1), users.slice(0, len(users) - 1)).to_numpy(zero_copy_only=False)
    return np.flatnonzero(np.concatenate([[True], changes]))


def _flat(table: pa.Table) -> tuple[pa.Array, Ints, Floats, Ints]:
    """User keys [u], events per user [u], times and items end to end."""
    keys = table["user_key"].combine_chunks()
    lengths = _numpy(pc.list_value_length(table["items"])).astype(np.int64)
    return keys, lengths, _numpy(pc.list_flatten(table["times"])), _numpy(pc.list_flatten(table["items"]))


def _numpy(column: Any) -> NDArray[Any]:
    return np.asarray(column.to_numpy() if isinstance(column, pa.ChunkedArray) else column.to_numpy(False))


def _lists(lengths: Ints, values: NDArray[Any]) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(np.append(0, np.cumsum(lengths)).astype(np.int32)), pa.array(values))
