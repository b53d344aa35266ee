"""The map of ids to rows against its definition."""

import numpy as np
import pytest

from pad_dist.config import HashedConfig
from pad_dist.errors import UserError
from pad_dist.sparse.id_map import IdMap
from tests.sparse import id_map_worker as worker
from tests.support.ranks import run_ranks


@pytest.mark.parametrize(("world_size", "seed"), [(1, 0), (1, 1), (2, 2), (3, 3)])
def test_rows_and_counters_are_those_of_one_id_at_a_time(world_size: int, seed: int) -> None:
    ranks = run_ranks(worker.followed, world_size, seed)
    batches = worker.stream(seed)
    waits = 0
    for number, settings in enumerate(worker.SETTINGS):
        oracle = worker.Oracle(settings)
        for step, (drawn, real) in enumerate(batches):
            admitted = oracle.batch(step, drawn, real)
            for rank in ranks:
                assert rank[number]["admitted"][step] == admitted
                assert all(row == oracle.row(key) for key, row in rank[number]["rows"][step].items())
        every = np.unique(np.concatenate([drawn for drawn, _ in batches])).tolist()
        for rank in ranks:
            assert rank[number]["last"] == [oracle.row(key) for key in every]
            assert rank[number]["counters"] == oracle.counters
        assert all(oracle.counters.values())
        waits += oracle.counters["collisions"] - oracle.counters["evicted"]
    assert waits


def test_buckets_that_are_too_few_for_the_ranks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pad_dist.sparse.id_map._BUCKETS_PER_RANK", 1025)
    with pytest.raises(UserError, match=r"sparse\.hashed\.buckets=1024 are too few for 1 ranks"):
        IdMap(HashedConfig(rows=1024, buckets=1024), None)
