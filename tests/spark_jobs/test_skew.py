"""One user with 100,000 events and one item with 200,000 of 400,000, in little memory."""

import random
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from benchmarks.support.builds import checked, run_build
from benchmarks.support.inputs import config_of, skewed
from pad_dist.dataset import versions

pytestmark = pytest.mark.slow

MIB = 1 << 20


def test_heavy_users_and_items_are_exact_and_fit_in_little_memory(tmp_path: Path) -> None:
    inputs, events = skewed(tmp_path, user_events=100_000, item_events=200_000, others=100_000)
    config = config_of(tmp_path / "dataset", f"{inputs}/interactions-*.csv.gz", inputs / "items.csv.gz", 4, "1g")
    measured = run_build(config, tmp_path / "scratch", timeout=240)
    assert measured.worker < 300 * MIB

    manifest = checked(config.dataset)
    assert manifest.counts["events"] == manifest.counts["interactions"] == len(events)
    folder = Path(versions.resolve(config.dataset))
    items = pq.read_table(folder / manifest.groups["items"][0].path)
    # All times differ, so a history is in their order; a user's last two events are held out.
    ordered = events.sort_by("timestamp")
    place = pc.index_in(ordered["item"], value_set=items["item_key"].combine_chunks()).to_numpy()
    user = ordered["user"].combine_chunks().dictionary_encode()
    codes = user.indices.to_numpy()
    by_user = np.argsort(codes, kind="stable")
    left = np.ones(len(events), bool)
    ends = np.cumsum(np.bincount(codes))
    left[by_user[ends - 1]] = left[by_user[ends - 2]] = False
    assert items["train_frequency"].to_pylist() == np.bincount(place[left], minlength=len(items)).tolist()

    found = {
        row["user_key"]: row["items"]
        for file in manifest.groups["sequences"]
        for row in pq.read_table(folder / file.path, columns=["user_key", "items"]).to_pylist()
    }
    for name in ["heavy", *random.Random(1).sample(sorted(found), 100)]:
        code = user.dictionary.index(name).as_py()
        assert found[name] == (place[codes == code] + 1).tolist()
