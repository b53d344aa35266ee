import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pad_dist.config import SparseConfig
from pad_dist.errors import UserError
from pad_dist.sparse.build import build_tables
from pad_dist.sparse.spec import TableSpec
from tests.sparse import tables_worker as worker
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.mark.parametrize("world_size", [1, 2])
def test_torchrec_and_torch_backends_learn_the_same_rows(world_size: int) -> None:
    for differences in run_ranks(worker.largest_differences, world_size, timeout=120):
        assert len(differences) == len(worker.configs()) == 26
        for config, difference in differences.items():
            # Rows of up to 1 in half precision are rounded by 2**-12 in each of four steps, by each backend its way.
            assert difference < (1e-6 if config.endswith("fp32") else 8 * 2**-12), config


def test_shards_of_all_ranks_make_the_whole_arrays_under_every_sharding() -> None:
    first, second = run_ranks(worker.shards_of_trained, 2)
    for variant, (shards, expected) in first.items():
        made = {name: np.full_like(array, np.nan) for name, array in expected.items()}
        for name, offsets, shape, values in [*shards, *second[variant][0]]:
            assert shape == made[name].shape
            sizes = zip(offsets, values.shape, strict=True)
            made[name][tuple(slice(at, at + size) for at, size in sizes)] = values
        assert made.keys() == {"id", "aligned", "id.momentum1", "aligned.momentum1"}
        for name, array in expected.items():
            np.testing.assert_allclose(made[name], array, rtol=1e-5, atol=1e-6, err_msg=f"{variant} {name}")


def test_frozen_rows_are_found_on_whatever_rank_holds_them() -> None:
    assert run_ranks(worker.frozen_rows_agree, 2) == [True, True]


@pytest.mark.parametrize(("saved_by", "loaded_by"), [(2, 1), (1, 2), (2, 3)])
def test_tables_load_at_another_world_size_and_under_another_name(
    tmp_path: Path, saved_by: int, loaded_by: int
) -> None:
    run_ranks(worker.save_trained, saved_by, str(tmp_path))
    assert all(run_ranks(worker.loads_what_was_saved, loaded_by, str(tmp_path)))


def test_half_precision_rows_start_as_those_in_single_precision_rounded_and_are_looked_up_in_single() -> None:
    assert run_ranks(worker.halves_are_rounded, 2) == [True, True]


def test_the_step_that_moments_are_corrected_by_is_that_of_training_whatever_was_looked_up_between() -> None:
    assert run_ranks(worker.corrected_by_step, 1) == [8]


@pytest.mark.parametrize("optimizer", ["adam", "partial_rowwise_adam"])
def test_what_has_no_cpu_kernel_is_refused_before_anything_is_allocated(optimizer: str) -> None:
    spec = TableSpec(("id",), 10**12, 8, lr=0.1, weight_decay=0.0)
    with pytest.raises(UserError, match=f"optimizer={optimizer} has no CPU kernel .* use rowwise_adagrad, adagrad or"):
        build_tables(spec, SparseConfig(optimizer=optimizer), CPU, 1)
    with pytest.raises(UserError, match=r"sparse\.uvm places rows beside a GPU's memory"):
        build_tables(spec, SparseConfig(uvm=True), CPU, 1)


def test_a_shard_is_allocated_once_and_filled_where_it_lies() -> None:
    # The high-water mark counts pages of the process, so the tables have one of their own.
    done = subprocess.run(
        [sys.executable, "-m", "tests.sparse.allocation_worker"],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    for line in done.stdout.splitlines():
        variant, grown, size = line.rsplit(maxsplit=2)
        assert int(size) > 150e6 and 0.98 * int(size) < int(grown) < int(size) + 20e6, variant


def test_more_ranks_than_rows_are_refused_with_the_number_that_would_do() -> None:
    spec = TableSpec(("id",), 5, 8, lr=0.1, weight_decay=0.0)
    with pytest.raises(UserError, match=r"5 rows, cut by rows, leave one of 4 ranks without any: use at most 3 ranks"):
        build_tables(spec, SparseConfig(), CPU, 4)
    with pytest.raises(UserError, match=r"leave one of 64 ranks without any: use at most 5 ranks"):
        build_tables(spec, SparseConfig(), CPU, 64)


def test_torch_backend_refuses_several_ranks() -> None:
    spec = TableSpec(("id",), 100, 8, lr=0.1, weight_decay=0.0)
    with pytest.raises(UserError, match="use one rank"):
        build_tables(spec, SparseConfig(backend="torch"), CPU, 2)


def test_adamw_equals_a_dense_table_under_adamw() -> None:
    spec = TableSpec(("id",), 50, 4, lr=0.01, weight_decay=0.1)
    tables = build_tables(spec, SparseConfig(backend="torch", optimizer="adamw"), CPU, 1)
    tables.initialise(seed=1, std=0.5)
    dense = torch.nn.Parameter(tables.weights()[0].tensor.clone())
    optimizer = torch.optim.AdamW([dense], lr=0.01, weight_decay=0.1)
    for step in range(5):
        items = torch.unique(torch.randint(0, 50, (20,), generator=torch.Generator().manual_seed(step)))
        tables.lookup(items)["id"].square().sum().backward()
        optimizer.zero_grad()
        dense[items].square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(tables.weights()[0].tensor, dense.detach())
