"""The demo data: reproducible at any size, and with the structure that it promises."""

import gzip
from pathlib import Path

import numpy as np
import pyarrow.csv as pa_csv
import pytest

from pad_dist.dataset.synthetic import (
    BRANDS,
    FLAVOURS,
    KINDS,
    SPAN,
    START,
    Catalogue,
    block_count,
    make_block,
    next_kind,
    write_synthetic,
)
from pad_dist.errors import UserError

EVENTS, USERS, ITEMS, SEED = 40_000, 3_000, 1_500, 7


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue(ITEMS, SEED)


@pytest.fixture(scope="module")
def histories(catalogue: Catalogue) -> list[np.ndarray]:
    """Liked items of each user with at least five, in time order."""
    blocks = [make_block(catalogue, EVENTS, USERS, block) for block in range(block_count(EVENTS, USERS))]
    user, item, rating, time = (
        np.concatenate([getattr(block, name) for block in blocks]) for name in ("user", "item", "rating", "timestamp")
    )
    order = np.lexsort((time, user))
    order = order[rating[order] >= 4]
    lists = np.split(item[order], np.nonzero(np.diff(user[order]))[0] + 1)
    return [items for items in lists if len(items) >= 5]


@pytest.fixture(scope="module")
def frequency(histories: list[np.ndarray]) -> np.ndarray:
    return np.bincount(np.concatenate([items[:-2] for items in histories]), minlength=ITEMS)


def hit_rate(scores: list[np.ndarray], histories: list[np.ndarray]) -> float:
    """hr@10 of the last item, earlier ones masked."""
    hits = []
    for score, items in zip(scores, histories, strict=True):
        masked = score.astype(float)
        masked[items[:-1]] = -np.inf
        hits.append((masked >= masked[items[-1]]).sum() <= 10)
    return float(np.mean(hits))


def test_equal_arguments_write_equal_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_synthetic(str(tmp_path / name), 1000, 100, 200, seed)
    for file in ("interactions-00000.csv.gz", "items.csv.gz"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
        assert (tmp_path / "a" / file).read_bytes() != (tmp_path / "c" / file).read_bytes()


def test_files_hold_the_asked_number_of_events_and_items(tmp_path: Path) -> None:
    write_synthetic(str(tmp_path), 1003, 100, 200, 1)
    events = pa_csv.read_csv(tmp_path / "interactions-00000.csv.gz")
    items = pa_csv.read_csv(tmp_path / "items.csv.gz")
    assert events.column_names == ["user", "item", "rating", "timestamp"] and events.num_rows == 1003
    assert items.column_names == ["item", "title"] and items.num_rows == 200
    assert len(set(events["user"].to_pylist())) == 100
    assert set(events["item"].to_pylist()) <= set(items["item"].to_pylist())
    assert set(events["rating"].to_pylist()) == {1, 2, 3, 4, 5}


def test_a_smaller_rerun_leaves_no_events_of_the_larger_one(tmp_path: Path) -> None:
    (tmp_path / "interactions-00001.csv.gz").write_bytes(gzip.compress(b"old"))
    write_synthetic(str(tmp_path), 1000, 100, 200, 1)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["interactions-00000.csv.gz", "items.csv.gz"]


def test_blocks_split_a_billion_events_and_each_is_made_alone() -> None:
    events, users = 1_000_000_000, 80_000_000
    catalogue = Catalogue(5_000_000, SEED)
    blocks = block_count(events, users)
    assert 10_000 < blocks < 20_000
    last, again = (make_block(catalogue, events, users, blocks - 1) for _ in range(2))
    assert last.user.max() == users - 1
    assert np.array_equal(last.item, again.item) and np.array_equal(last.timestamp, again.timestamp)
    assert 0 < len(last.item) < 100_000 and last.item.max() < 5_000_000


def test_blocks_together_hold_every_event_and_user() -> None:
    catalogue = Catalogue(2000, SEED)
    blocks = [make_block(catalogue, 300_001, 20_000, block) for block in range(block_count(300_001, 20_000))]
    assert len(blocks) > 3
    assert sum(len(block.user) for block in blocks) == 300_001
    assert len(np.unique(np.concatenate([block.user for block in blocks]))) == 20_000


def test_events_come_in_no_order(catalogue: Catalogue) -> None:
    block = make_block(catalogue, EVENTS, USERS, 0)
    for column in (block.user, block.timestamp):
        assert 0.45 < (np.diff(column) > 0).mean() < 0.55


def test_nothing_is_sold_before_it_appears(catalogue: Catalogue) -> None:
    block = make_block(catalogue, EVENTS, USERS, 0)
    when = (block.timestamp - START) / SPAN
    assert (catalogue.birth(block.item) > when + 1e-6).mean() < 1e-3


def test_few_items_make_most_sales(frequency: np.ndarray) -> None:
    sorted_frequency = np.sort(frequency)[::-1]
    assert sorted_frequency[: ITEMS // 10].sum() > 0.4 * frequency.sum()


def test_item_transitions_beat_popularity_by_far(histories: list[np.ndarray], frequency: np.ndarray) -> None:
    follows = np.zeros((ITEMS, ITEMS))
    for items in histories:
        np.add.at(follows, (items[:-3], items[1:-2]), 1.0)
    popular = hit_rate([frequency] * len(histories), histories)
    sequential = hit_rate([follows[items[-2]] + 1e-6 * frequency for items in histories], histories)
    assert 0.02 < popular < 0.1
    assert sequential > 0.3


def test_cold_targets_are_reachable_by_attributes_alone(
    catalogue: Catalogue, histories: list[np.ndarray], frequency: np.ndarray
) -> None:
    cold = [items for items in histories if frequency[items[-1]] <= 5]
    assert 0.08 < len(cold) / len(histories) < 0.15
    assert any(frequency[items[-1]] == 0 for items in cold)
    everything = np.arange(ITEMS)
    kind, flavour, brand = catalogue.kind(everything), catalogue.flavour(everything), catalogue.brand(everything)
    scores = []
    for items in cold:
        past = items[:-1]
        taste = np.bincount(flavour[past][-6:], minlength=len(FLAVOURS))[flavour]
        loyalty = 1 + 6 * np.bincount(brand[past], minlength=len(BRANDS))[brand] / len(past)
        kinds = 0.02 + 0.35 * np.bincount(kind[past], minlength=len(KINDS)) / len(past)
        kinds[next_kind(kind[past[-1:]], catalogue.kinds)] += 0.55
        scores.append(kinds[kind] * (taste + 0.1) * loyalty)
    assert hit_rate(scores, cold) > 3 * hit_rate([frequency] * len(cold), cold) + 0.2


def test_titles_name_every_attribute(catalogue: Catalogue) -> None:
    items = np.arange(100)
    for item, title in zip(items, catalogue.titles(items), strict=True):
        one = np.array([item])
        for word in (
            BRANDS[catalogue.brand(one)[0]],
            FLAVOURS[catalogue.flavour(one)[0]],
            KINDS[catalogue.kind(one)[0]],
        ):
            assert word in title


@pytest.mark.parametrize(("events", "items", "fix"), [(100, 500, "3 events per user"), (1000, 20, "at least 192")])
def test_sizes_without_structure_are_refused_before_anything_is_written(
    tmp_path: Path, events: int, items: int, fix: str
) -> None:
    with pytest.raises(UserError, match=fix):
        write_synthetic(str(tmp_path / "out"), events, 100, items, 1)
    assert not (tmp_path / "out").exists()
