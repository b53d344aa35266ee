"""Demo data of any size: raw events and a catalogue with structure to learn.

The data come in blocks of users. Every block is a pure function of (seed, block), so
any size fits in memory and blocks can be made anywhere. What a model can learn:

* Next item: kinds of product follow one another (coffee, then filters), so the last
  item says much about the next.
* Taste: a user has favourite kinds, a flavour and a brand; the flavour drifts.
* Popularity: items of one kind and flavour sell by Zipf's law, and so do kinds and flavours.
* Cold items: a share of the catalogue appears late and is then in demand, so that
  it is bought at the end of many histories and seldom in training.
* Text: a title names brand, flavour, kind and use, so it places an item never sold before.

Bad ratings mark purchases outside the taste: a rating filter removes noise.
"""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
from numpy.typing import NDArray

from pad_dist import storage
from pad_dist.errors import UserError

Ints = NDArray[np.int64]

# fmt: off
BRANDS = [
    "Northfield", "Bluebird", "Harvest", "Silverleaf", "Granite", "Sunny", "Maple", "Cedar", "Golden", "Riverside",
    "Alpine", "Coastal", "Redwood", "Meadow", "Prairie", "Lighthouse",
]
FLAVOURS = [
    "Vanilla", "Lemon", "Chocolate", "Lavender", "Cinnamon", "Peppermint", "Strawberry", "Coconut", "Ginger",
    "Honey", "Apple", "Unscented",
]
KINDS = [
    "Ground Coffee", "Paper Filters", "Biscuits", "Black Tea", "Shampoo", "Conditioner", "Body Lotion", "Hand Soap",
    "Dog Treats", "Cat Food", "Laundry Detergent", "Fabric Softener", "Pasta", "Tomato Sauce", "Olive Oil",
    "Breakfast Cereal", "Protein Bar", "Energy Drink", "Toothpaste", "Mouthwash", "Baby Wipes", "Diapers", "Candle",
    "Air Freshener",
]
USES = [
    "for the Family", "Travel Size", "Organic", "Gift Set", "Value Pack", "Gluten Free", "for Sensitive Skin",
    "Limited Edition",
]
# fmt: on

START, SPAN = 1_400_000_000, 86_400 * 700
"""Unix time of the first possible event and the seconds covered."""
LATE_SHARE, LATE_FROM = 0.2, 0.85
"""Share of the items that appear late, and from where in the span."""
LAUNCH = 0.06
"""Part of the span for which a new item is in demand."""
_CANDIDATES = 8
_BLOCK_EVENTS = 1 << 16
_PART_BLOCKS = 16
_ITEM_BLOCK = 1 << 16


@dataclass(frozen=True)
class Catalogue:
    """Attributes of items 0..size-1, computed from (seed, item) when asked; nothing is stored.

    An item's kind and flavour are its group (item mod groups), so that arithmetic
    gives a group's items, most popular first.
    """

    size: int
    seed: int

    @property
    def kinds(self) -> int:
        """Kinds in use: small catalogues have fewer, so that each group has items to choose among."""
        return int(np.clip(self.size // (8 * len(FLAVOURS)), 2, len(KINDS)))

    @property
    def groups(self) -> int:
        """Pairs of kind and flavour."""
        return self.kinds * len(FLAVOURS)

    def kind(self, items: Ints) -> Ints:
        """[n] index into KINDS."""
        return items % self.groups // len(FLAVOURS)

    def flavour(self, items: Ints) -> Ints:
        """[n] index into FLAVOURS."""
        return items % len(FLAVOURS)

    def brand(self, items: Ints) -> Ints:
        """[n] index into BRANDS."""
        return (_uniform(self.seed, 1, items) * len(BRANDS)).astype(np.int64)

    def birth(self, items: Ints) -> NDArray[np.float64]:
        """[n] when each item appears, as a part of the span."""
        late = _uniform(self.seed, 2, items) < LATE_SHARE
        when = _uniform(self.seed, 3, items)
        return np.where(late, LATE_FROM + (1 - LATE_FROM) * when, 0.0)

    def titles(self, items: Ints) -> list[str]:
        """[n] titles naming every attribute."""
        use = (_uniform(self.seed, 4, items) * len(USES)).astype(np.int64)
        ounces = 2 + (_uniform(self.seed, 5, items) * 46).astype(np.int64)
        columns = zip(self.brand(items), self.flavour(items), self.kind(items), use, ounces, strict=True)
        return [f"{BRANDS[b]} {FLAVOURS[f]} {KINDS[k]}, {USES[u]}, {o} Ounce" for b, f, k, u, o in columns]

    def draw(self, rng: np.random.Generator, kind: Ints, flavour: Ints) -> Ints:
        """One item of each (kind, flavour), Zipf over the group; any shape."""
        group = kind * len(FLAVOURS) + flavour
        members = (self.size - 1 - group) // self.groups + 1
        place = (members + 1.0) ** rng.random(group.shape)
        return group + self.groups * (place.astype(np.int64) - 1)


@dataclass(frozen=True)
class Events:
    """Events of one block, shuffled; users are block-wide numbers, times in unix seconds."""

    user: Ints
    item: Ints
    rating: Ints
    timestamp: Ints


def block_count(events: int, users: int) -> int:
    """Number of blocks that hold about 65,536 events each."""
    return -(-users // _block_users(events, users))


def make_block(catalogue: Catalogue, events: int, users: int, block: int) -> Events:
    """The events of one block of users: a pure function of its arguments."""
    rng = np.random.default_rng([catalogue.seed, block])
    size = _block_users(events, users)
    first, last = block * size, min((block + 1) * size, users)
    total = events * last // users - events * first // users
    n = last - first
    least = min(5, total // n)
    lengths = least + rng.multinomial(total - least * n, rng.dirichlet(np.full(n, 2.0)))
    times = _times(rng, lengths)
    items, liked = _histories(rng, catalogue, lengths, times)
    real = np.arange(times.shape[1]) < lengths[:, None]
    rating = np.where(liked, rng.integers(4, 6, liked.shape), rng.integers(1, 4, liked.shape))
    order = rng.permutation(total)
    return Events(
        user=(first + np.nonzero(real)[0])[order],
        item=items[real][order],
        rating=rating[real][order],
        timestamp=(START + times[real] * SPAN).astype(np.int64)[order],
    )


def write_synthetic(url: str, events: int, users: int, items: int, seed: int) -> None:
    """Write `<url>/interactions-NNNNN.csv.gz` (user, item, rating, timestamp) and `<url>/items.csv.gz` (item, title).

    Same arguments, same bytes. Memory stays at one block; a part file holds about a
    million events. Event files of an earlier call are deleted.

    Raises:
        UserError: sizes that allow no history to learn from.
    """
    if users < 1 or events < 3 * users:
        raise UserError(f"{events} events for {users} users: give at least 3 events per user")
    if items < 2 * 8 * len(FLAVOURS):
        raise UserError(f"{items} items are too few: give at least {2 * 8 * len(FLAVOURS)}")
    catalogue = Catalogue(items, seed)
    fs, path = storage.filesystem(url)
    for stale in fs.glob(f"{path}/interactions-*.csv.gz"):
        fs.rm_file(stale)
    _write_csv(storage.join(url, "items.csv.gz"), _item_tables(catalogue))
    blocks = block_count(events, users)
    for part, start in enumerate(range(0, blocks, _PART_BLOCKS)):
        chosen = range(start, min(start + _PART_BLOCKS, blocks))
        tables = (_event_table(make_block(catalogue, events, users, block)) for block in chosen)
        _write_csv(storage.join(url, f"interactions-{part:05d}.csv.gz"), tables)


def _block_users(events: int, users: int) -> int:
    return max(1, _BLOCK_EVENTS * users // events)


def _times(rng: np.random.Generator, lengths: Ints) -> NDArray[np.float64]:
    """[n, longest] ascending times of each user, as parts of the span; most users are active to the end."""
    n = len(lengths)
    end = 1 - rng.beta(0.5, 3.0, n)
    start = end * rng.random(n) * 0.8
    inside = rng.random((n, int(lengths.max())))
    inside[np.arange(inside.shape[1]) >= lengths[:, None]] = np.inf
    inside.sort(axis=1)
    with np.errstate(invalid="ignore"):
        return start[:, None] + (end - start)[:, None] * inside


def _histories(
    rng: np.random.Generator, catalogue: Catalogue, lengths: Ints, times: NDArray[np.float64]
) -> tuple[Ints, NDArray[np.bool_]]:
    """[n, longest] items bought in order, and whether each was to the user's taste."""
    n, longest = times.shape
    rows = np.arange(n)
    favourite_kinds = _skewed(rng, catalogue.kinds, (n, 3))
    flavour = _skewed(rng, len(FLAVOURS), n)
    brand = _skewed(rng, len(BRANDS), n)
    kind = favourite_kinds[:, 0]
    items = np.full((n, longest), -1, np.int64)
    liked = np.ones((n, longest), np.bool_)
    for t in range(longest):
        choice = rng.random(n)
        again = favourite_kinds[rows, rng.integers(0, 3, n)]
        kind = np.where(choice < 0.55, next_kind(kind, catalogue.kinds), np.where(choice < 0.9, again, kind))
        flavour = np.where(rng.random(n) < 0.04, _skewed(rng, len(FLAVOURS), n), flavour)
        taste = rng.random(n) < 0.93
        wanted = np.where(taste, flavour, rng.integers(0, len(FLAVOURS), n))
        shape = (n, _CANDIDATES)
        offers = catalogue.draw(rng, np.broadcast_to(kind[:, None], shape), np.broadcast_to(wanted[:, None], shape))
        age = times[:, t, None] - catalogue.birth(offers)
        recent = items[:, max(0, t - 64) : t]
        appeal = rng.random(shape)
        appeal += 1.5 * (catalogue.brand(offers) == brand[:, None])
        appeal += 1.0 * ((age >= 0) & (age < LAUNCH) & (catalogue.birth(offers) > 0))
        appeal -= 100.0 * (age < 0)
        appeal -= 10.0 * (offers[:, :, None] == recent[:, None, :]).any(axis=2)
        items[:, t] = offers[rows, appeal.argmax(axis=1)]
        liked[:, t] = taste
    return items, liked


def next_kind(kind: Ints, kinds: int) -> Ints:
    """[n] the kind that is bought after `kind`: each has one successor."""
    return (kind + 1) % kinds


def _skewed(rng: np.random.Generator, n: int, shape: Any) -> Ints:
    """Integers below n, Zipf: 0 most often."""
    return cast(Ints, ((n + 1.0) ** rng.random(shape)).astype(np.int64) - 1)


def _uniform(seed: int, salt: int, items: Ints) -> NDArray[np.float64]:
    """Uniform [0, 1) numbers that depend on (seed, salt, item) alone (splitmix64)."""
    x = items.astype(np.uint64) + np.uint64((seed * 64 + salt) * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    x = x ^ (x >> np.uint64(31))
    return cast(NDArray[np.float64], (x >> np.uint64(11)) * 2.0**-53)


def _keys(prefix: str, numbers: Ints) -> list[str]:
    return [f"{prefix}{number:09d}" for number in numbers]


def _item_tables(catalogue: Catalogue) -> Iterator[pa.Table]:
    for start in range(0, catalogue.size, _ITEM_BLOCK):
        items = np.arange(start, min(start + _ITEM_BLOCK, catalogue.size))
        yield pa.table({"item": _keys("i", items), "title": catalogue.titles(items)})


def _event_table(events: Events) -> pa.Table:
    return pa.table(
        {
            "user": _keys("u", events.user),
            "item": _keys("i", events.item),
            "rating": events.rating,
            "timestamp": events.timestamp,
        }
    )


def _write_csv(url: str, tables: Iterator[pa.Table]) -> None:
    with storage.atomic_writer(url) as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
        for number, table in enumerate(tables):
            pa_csv.write_csv(table, file, pa_csv.WriteOptions(include_header=number == 0))


def main() -> None:
    """Command line: `python -m pad_dist.dataset.synthetic --out DIR`."""
    parser = argparse.ArgumentParser(description="Write synthetic events and a catalogue.")
    parser.add_argument("--out", required=True, help="directory or URL")
    parser.add_argument("--events", type=int, default=40_000)
    parser.add_argument("--users", type=int, default=3_000)
    parser.add_argument("--items", type=int, default=1_500)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    write_synthetic(arguments.out, arguments.events, arguments.users, arguments.items, arguments.seed)


if __name__ == "__main__":
    main()
