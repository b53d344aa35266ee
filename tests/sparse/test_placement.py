"""Where blocks of tables lie, in closed form and as TorchRec's planner says."""

import pytest
from fbgemm_gpu.split_embedding_configs import EmbOptimType

from pad_dist.config import SparseConfig
from pad_dist.errors import UserError
from pad_dist.runtime.devices import Device
from pad_dist.sparse.build import place
from pad_dist.sparse.placement import Block, block_bytes
from pad_dist.sparse.planning import planned
from pad_dist.sparse.spec import TableSpec

GIB = 2**30
GPU = Device("gpu", "cuda", 40 * GIB, 100 * GIB, 8)
CPU = Device("cpu", "cpu", 40 * GIB, 40 * GIB, 2)


def spec(rows: int, dim: int) -> TableSpec:
    return TableSpec(("id", "aligned"), rows, dim, lr=0.1, weight_decay=0.0)


@pytest.mark.parametrize("device", [CPU, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize(("rows", "world_size"), [(1001, 1), (1001, 2), (1000, 3), (10, 4), (3, 4), (10**7 + 1, 64)])
def test_row_wise_blocks_in_closed_form_are_the_planner_s(rows: int, world_size: int, device: Device) -> None:
    config = SparseConfig()
    blocks = place(spec(rows, 64), config, device, world_size)
    found = [block for block in planned(spec(rows, 64), config, device, world_size) if block.rows]
    assert sorted(map(str, blocks)) == sorted(map(str, found))
    assert sum(block.rows for block in blocks) == 2 * rows


@pytest.mark.parametrize(("rows", "parts", "world_size"), [(1001, 2, 4), (1000, 4, 3), (7, 2, 1)])
def test_a_grid_covers_every_value_once_and_spreads_a_row_over_ranks(rows: int, parts: int, world_size: int) -> None:
    config = SparseConfig(sharding="grid", optimizer="adagrad", grid_columns=parts)
    blocks = place(spec(rows, 64), config, CPU, world_size)
    for table in ("id", "aligned"):
        cells = [
            (row, b.first_column)
            for b in blocks
            if b.table == table
            for row in range(b.first_row, b.first_row + b.rows)
        ]
        assert sorted(cells) == [(row, column) for row in range(rows) for column in range(0, 64, 64 // parts)]
    holders = {block.rank for block in blocks if block.table == "id" and block.first_row == 0}
    assert len(holders) == min(parts, world_size)
    assert max(sum(b.rows for b in blocks if b.rank == r) for r in range(world_size)) == 2 * -(
        -rows * parts // world_size
    )


@pytest.mark.parametrize(("dim", "world_size", "columns"), [(256, 2, 128), (64, 2, 32), (64, 3, 32), (64, 64, 4)])
def test_column_wise_cuts_rows_of_any_width_into_as_many_parts_as_there_are_ranks_at_most(
    dim: int, world_size: int, columns: int
) -> None:
    config = SparseConfig(sharding="column_wise", optimizer="adagrad")
    blocks = place(spec(1000, dim), config, CPU, world_size)
    assert {block.columns for block in blocks} == {columns}
    assert sum(block.columns for block in blocks) == 2 * dim


def test_the_planner_counts_optimizer_state() -> None:
    # 24 GiB of weights on 40 GiB: two of them need two ranks, and Adam's two moments each more.
    tables = spec(24 * GIB // 512, 128)
    assert {b.rank for b in place(tables, SparseConfig(sharding="table_wise", optimizer="sgd"), GPU, 2)} == {0, 1}
    with pytest.raises(UserError, match="finds no table_wise placement"):
        place(tables, SparseConfig(sharding="table_wise", optimizer="adam"), GPU, 2)


def test_rows_that_exceed_a_gpu_go_to_its_host_with_uvm_alone() -> None:
    tables = spec(30 * GIB // 512, 128)
    config = SparseConfig(sharding="planner", optimizer="sgd")
    with pytest.raises(UserError, match="finds no planner placement"):
        place(tables, config, GPU, 1)
    kernels = [b.kernel for b in place(tables, config.model_copy(update={"uvm": True}), GPU, 1)]
    assert len(kernels) == 2 and any(kernel.startswith("fused_uvm") for kernel in kernels)


def test_more_gpus_than_a_host_has_are_planned_for() -> None:
    assert len(planned(spec(10**9, 128), SparseConfig(), GPU, 1024)) == 2048


@pytest.mark.parametrize("dim", [4, 64, 128])
def test_state_of_the_optimizers_without_a_cpu_kernel_is_as_large_as_fbgemm_says(dim: int) -> None:
    block = Block("id", 0, 0, 1, 0, dim)
    for name, kind in (("adam", EmbOptimType.ADAM), ("partial_rowwise_adam", EmbOptimType.PARTIAL_ROWWISE_ADAM)):
        _, state = block_bytes(block, SparseConfig(optimizer=name))  # type: ignore[arg-type]
        assert state == kind.state_size_nbytes(dim)
