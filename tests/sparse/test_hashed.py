"""Rows that are given to ids as they are seen: what they start from, what reaches them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.sparse import hashed_worker as worker
from tests.sparse.id_map_worker import stream
from tests.support.ranks import run_ranks


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_row_learns_for_one_id_alone_and_starts_anew_with_the_next(world_size: int) -> None:
    for found in run_ranks(worker.trained, world_size):
        for variant, tables in found.items():
            expected = worker.expected(variant, world_size)
            for name, rows in tables.items():
                assert 0 < len(expected[name]) < len(rows) - 1
                for key, row in rows.items():
                    if key:
                        wanted = expected[name].get(key, np.zeros(worker.DIM))
                        np.testing.assert_allclose(row, wanted, rtol=1e-5, atol=1e-6, err_msg=f"{variant} {key}")


def test_the_moments_of_a_reused_row_start_at_zero() -> None:
    tables = worker.build("torch row_wise adamw")
    for step in range(3):
        (ids, seen, _), *_ = worker.asked(step, 1)
        before = tables.lookup(torch.from_numpy(ids))["id"].any(1).numpy()
        rows = tables.lookup(torch.from_numpy(ids), torch.from_numpy(seen))
        new = torch.from_numpy(ids[rows["id"].any(1).numpy() & ~before])
        assert len(new)
        tensors = {shard.name: shard.tensor for shard in tables.shards()}
        wanted = (tensors["id.ids"][..., None] == new).any(-1).flatten()
        for moment in ("exp_avg", "exp_avg_sq") if step else ():
            assert tensors[f"id.{moment}"][1:][~wanted].any() and not tensors[f"id.{moment}"][1:][wanted].any()
        sum(row.square().sum() for row in rows.values()).backward()


def test_followers_start_anew_with_the_rows_of_a_table() -> None:
    tables = worker.build("torch row_wise rowwise_adagrad")
    shard = next(shard for shard in tables.weights() if shard.name == "id")
    tables.followers = [replace(shard, tensor=torch.zeros_like(shard.tensor))]
    drawn = set[int]()
    for step in range(3):
        (ids, seen, _), *_ = worker.asked(step, 1)
        before, old = tables.followers[0].tensor.clone(), shard.tensor.clone()
        tables.lookup(torch.from_numpy(ids), torch.from_numpy(seen))
        new = (shard.tensor != old).any(1)
        assert new.any() and torch.equal(tables.followers[0].tensor[new], shard.tensor[new])
        assert torch.equal(tables.followers[0].tensor[~new], before[~new])
        drawn |= {*new.nonzero().flatten().tolist()}
    assert len(drawn) < len(shard.tensor) - 1


def test_an_id_without_a_row_has_zeros_and_gives_no_gradient() -> None:
    tables = worker.build("torch row_wise rowwise_adagrad")
    ids, seen = torch.tensor([0, 3, 4]), torch.tensor([0, 2, 1])
    rows = tables.lookup(ids, seen)
    assert rows["id"][0].all() and rows["id"][1].all() and not rows["id"][2].any()
    before = {shard.name: shard.tensor.clone() for shard in tables.shards()}
    rows["id"][2].sum().backward()
    assert all(torch.equal(before[shard.name], shard.tensor) for shard in tables.shards())


def test_the_map_of_a_frozen_table_stays_as_it_is() -> None:
    tables = worker.build("torch row_wise rowwise_adagrad", frozen=("id",))
    drawn, real = stream(0)[0]
    ids, places = np.unique(drawn, return_inverse=True)
    tables.lookup(torch.from_numpy(ids), torch.from_numpy(np.bincount(places, real).astype(np.int64)))
    counters = tables.counters()
    assert counters["id.admitted"] == counters["id.unadmitted"] == 0 < counters["aligned.admitted"]


def test_all_rows_that_a_step_changes_are_told_before_they_change() -> None:
    tables = worker.build("torch row_wise rowwise_adagrad")
    changes = 0
    for step in range(worker.STEPS):
        before = {
            shard.name: shard.tensor.clone() for shard in tables.shards() if shard.name in ("id", "aligned.momentum1")
        }
        told = []

        def tell(rows: torch.Tensor, before: dict[str, torch.Tensor] = before, told: list[int] = told) -> None:
            assert all(
                torch.equal(shard.tensor, before[shard.name]) for shard in tables.shards() if shard.name in before
            )
            assert torch.equal(rows, rows.unique())
            told += rows.tolist()

        (ids, seen, gradient), *_ = worker.asked(step, 1)
        rows = tables.lookup(torch.from_numpy(ids), torch.from_numpy(seen), tell)
        sum((row * torch.from_numpy(gradient)).sum() for row in rows.values()).backward()
        after = {shard.name: shard.tensor for shard in tables.shards()}
        for name, old in before.items():
            changed = (after[name] != old).view(len(old), -1).any(1).nonzero().flatten().tolist()
            assert set(changed) <= set(told)
            changes += len(changed)
    assert changes
