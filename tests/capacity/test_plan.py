"""Plans against closed forms, real allocations and a device's memory."""

import re
import tracemalloc
from itertools import chain
from pathlib import Path

import pytest

from pad_dist.capacity.plan import StagePlan, check_capacity, plan_stage, smallest_world_size
from pad_dist.capacity.resident import dense_parameters
from pad_dist.capacity.sizes import DataSize, data_size, step_size
from pad_dist.config import Config
from pad_dist.config.load import parse_config
from pad_dist.dataset.manifest import FileEntry, Manifest, write_manifest
from pad_dist.errors import UserError
from pad_dist.runtime.devices import Device, profile
from tests.capacity import allocation_worker as worker
from tests.support.ranks import run_ranks
from tests.support.stages import STAGES, stage_of
from tests.support.tiny_dataset import random_sequences, write_tiny_dataset

pytestmark = pytest.mark.slow

GIB = 2**30
DATA = DataSize(items=1_000_000, users=5000, interactions=100_000, text_dim=384)
GPU = Device("gpu", "cuda", 40 * GIB, 100 * GIB, 8)


def config(**sections: object) -> Config:
    return parse_config({"name": "x", "model": {"dim": 128}} | sections, "the test")


def lines(plan: StagePlan) -> dict[str, int]:
    return {line.name: line.bytes for line in chain(plan.resident, *plan.phases.values())}


@pytest.mark.parametrize("world_size", [1, 2, 7, 64])
def test_what_lies_on_a_rank_follows_from_its_share_of_the_rows(world_size: int) -> None:
    rows = -(-1_000_001 // world_size)
    planned = lines(plan_stage(stage_of(config(), "disentangle"), DATA, GPU, world_size))
    for table in ("id", "aligned"):
        assert planned[f"table {table}"] == rows * 128 * 4
        assert planned[f"table {table}, rowwise_adagrad state"] == rows * 4
    assert planned["text vectors, float16"] == rows * 384 * 2
    assert planned["frequency bins"] == rows


def test_the_moving_average_of_the_trained_tables_lies_in_host_memory() -> None:
    averaged = config(disentangle={"ema_decay": 0.5, "freeze": ["id"]})
    before, plan = (plan_stage(stage_of(c, "disentangle"), DATA, GPU, 2) for c in (config(), averaged))
    assert lines(plan)["table aligned, EMA"] == 500_001 * 128 * 4
    assert "table id, EMA" not in lines(plan)
    assert plan.needed(on_host=True) - before.needed(on_host=True) == 500_001 * 128 * 4


@pytest.mark.parametrize(
    ("stage", "tables", "text"),
    [("pretrain", {"id"}, 0), ("align", {"aligned"}, 1), ("disentangle", {"id", "aligned"}, 1)],
)
def test_stages_differ_in_tables_and_text(stage: str, tables: set[str], text: int) -> None:
    planned = lines(plan_stage(stage_of(config(), stage), DATA, GPU, 2))
    assert {name.removeprefix("table ") for name in planned if name.startswith("table ") and "," not in name} == tables
    assert sum(name.startswith("text vectors") for name in planned) == text


@pytest.mark.parametrize(
    ("zero", "precision", "weights", "gradients", "state"),
    [
        (0, "fp32", 4, 4, 8),
        (1, "fp32", 4, 4, 12 / 4),
        (2, "fp32", 4, 4 / 4, 12 / 4),
        (3, "fp32", 4 / 4, 4 / 4, 12 / 4),
        (0, "bf16", 2, 2, 12),
        (3, "bf16", 2 / 4, 2 / 4, 12 / 4),
    ],
)
def test_zero_cuts_the_dense_part_over_ranks(
    zero: int, precision: str, weights: float, gradients: float, state: float
) -> None:
    chosen = config(training={"zero_stage": zero, "precision": precision})
    everything, trained = dense_parameters(stage_of(chosen, "align"), 384)
    # Encoder: four projections, feed-forward, three norms; projector: two layers.
    assert everything == trained == 4 * 128**2 + 8 * 128**2 + 5 * 128 + 6 * 128 + (384 * 128 + 128) + (128**2 + 128)
    planned = lines(plan_stage(stage_of(chosen, "align"), DATA, GPU, 4))
    sizes = (planned["dense weights"], planned["dense gradients"], planned["dense AdamW: moments, fp32 weights"])
    assert sizes == pytest.approx([n * everything for n in (weights, gradients, state)], abs=1)


def test_frozen_experts_have_no_gradients() -> None:
    everything, trained = dense_parameters(stage_of(config(), "disentangle"), 384)
    _, rest = dense_parameters(stage_of(config(disentangle={"freeze": ["id", "aligned"]}), "disentangle"), 384)
    _, text_alone = dense_parameters(stage_of(config(), "align"), 384)  # as large as the text expert
    assert trained == everything
    assert rest == text_alone + 11 * 3  # and the gate
    _, projector = dense_parameters(stage_of(config(align={"anchor": False}), "align"), 384)
    assert projector == (384 * 128 + 128) + (128**2 + 128)


def test_ndcg_and_log_probabilities_hold_the_logits_of_all_positions_at_once() -> None:
    def logits(**settings: object) -> int:
        return lines(plan_stage(stage_of(config(disentangle=settings), "disentangle"), DATA, GPU, 2))["logits"]

    experts = ["id", "aligned", "text"]
    alone = {"freeze": experts, "trained_text": True}
    some = 128 // 2 * 2048
    assert logits(loss="ndcg") - logits() == 20 * some * 17
    assert logits(mix="log_probabilities") - logits() == 3 * 20 * some * 13
    both = logits(loss="ndcg", mix="log_probabilities", targets="valid", **alone)
    assert both - logits(targets="valid", **alone) == some * (17 + 13)


def test_two_experts_take_less_than_three() -> None:
    two = {"experts": ["aligned", "text"], "gate": "none"}
    planned = lines(plan_stage(stage_of(config(disentangle=two), "disentangle"), DATA, GPU, 2))
    three = lines(plan_stage(stage_of(config(), "disentangle"), DATA, GPU, 2))
    assert "table aligned" in planned and "table id" not in planned
    assert three.keys() - planned.keys() == {"table id", "table id, rowwise_adagrad state"}
    unique = step_size(config(), DATA.items, 2).unique
    assert three["looked-up rows and gradients"] - planned["looked-up rows and gradients"] == unique * 128 * 4 * 6
    assert all(
        planned[name] < three[name] for name in ("activations", "logits", "users", "dense AdamW: moments, fp32 weights")
    )
    everything, _ = dense_parameters(stage_of(config(disentangle=two), "disentangle"), 384)
    assert everything == 2 * dense_parameters(stage_of(config(), "align"), 384)[0]  # and no gate


def test_the_expert_of_item_knn_takes_vectors_of_the_texts_width_and_no_weights() -> None:
    four = {"experts": ["id", "aligned", "text", "item_knn"], "gate": "none"}
    three = {"experts": ["id", "aligned", "text"], "gate": "none"}
    more, less = (
        lines(plan_stage(stage_of(config(disentangle=experts), "disentangle"), DATA, GPU, 2))
        for experts in (four, three)
    )
    assert {name for name in more if more[name] != less[name]} == {
        *("activations", "logits", "item vectors", "looked-up rows", "users")
    }
    positions = step_size(config(), DATA.items, 2).positions
    assert more["logits"] - less["logits"] == positions * DATA.text_dim * 4 * 3


def test_a_stage_without_id_tables_holds_texts_alone() -> None:
    for backend in ("torchrec", "torch"):
        chosen = config(method="text", sparse={"backend": backend, "hashed": {"rows": 1 << 14}})
        plan = plan_stage(stage_of(chosen, "pretrain_text"), DATA, GPU, 1)
        assert plan.fits and not plan.blocks
        planned = lines(plan)
        assert "text vectors, float16" in planned and not [
            name for name in planned if name.startswith(("table", "maps"))
        ]


def test_auxiliary_losses_are_counted() -> None:
    alone = plan_stage(stage_of(config(method="id"), "pretrain"), DATA, GPU, 2)
    for method, width in (("rlmrec_con", 128), ("rlmrec_gen", 384)):
        plan = plan_stage(stage_of(config(method=method), "pretrain"), DATA, GPU, 2)
        step = step_size(config(), DATA.items, 2)
        samples = step.unique if method == "rlmrec_con" else step.positions
        (sent,) = [line.bytes for line in plan.traffic if line.name == "samples of the alignment"]
        assert sent == samples * (2 * width + 1) * 4
        more = lines(plan).keys() - lines(alone).keys()
        assert more == {"text vectors, float16", "text files", "samples of all ranks, aligned"}
        head = dense_parameters(stage_of(config(method=method), "pretrain"), 384)[0]
        head -= dense_parameters(stage_of(config(), "pretrain"), 384)[0]
        ends = 384 + 128
        assert head == ends * ends // 2 + ends // 2 + width + (128 if method == "rlmrec_gen" else 0)
    started = lines(plan_stage(stage_of(config(method="llm_init"), "pretrain"), DATA, GPU, 2))
    assert started.keys() - lines(alone).keys() == {
        "covariance of text vectors",
        "text vectors to start from",
        "text files",
    }


@pytest.mark.parametrize("world_size", [1, 2, 8])
def test_a_step_sends_what_the_other_ranks_hold_and_want(world_size: int) -> None:
    chosen = config(training={"batch_size": 64, "loss": {"negatives": 100}}, model={"dim": 128, "max_length": 10})
    unique = 1 + 64 // world_size * 11 + 100
    assert step_size(chosen, DATA.items, world_size).unique == unique
    assert step_size(chosen, 20, world_size).unique == 21
    sent = {
        line.name: line.bytes for line in plan_stage(stage_of(chosen, "disentangle"), DATA, GPU, world_size).traffic
    }
    others = (world_size - 1) / world_size
    assert sent["rows, forward"] == sent["gradients of rows, backward"] == int(2 * unique * 128 * 4 * others)
    assert sent["ids of rows"] == int((2 + 2) * unique * 8 * others)
    assert sent["text vectors and item columns"] == int(unique * (384 * 2 + 1) * others)
    grid = config(training=chosen.training.model_dump(), model=chosen.model.model_dump())
    grid = grid.model_copy(
        update={"sparse": chosen.sparse.model_copy(update={"sharding": "grid", "optimizer": "adagrad"})}
    )
    cut = {line.name: line.bytes for line in plan_stage(stage_of(grid, "disentangle"), DATA, GPU, world_size).traffic}
    assert cut["ids of rows"] == int((4 + 2) * unique * 8 * others)


@pytest.mark.parametrize("world_size", [1, 2])
def test_bytes_of_tables_and_state_are_those_that_the_ranks_allocate(world_size: int) -> None:
    for by_variant in run_ranks(worker.allocated, world_size):
        for variant, (planned, real) in by_variant.items():
            assert planned == real, variant
        assert len(by_variant) == len(worker.VARIANTS)


def test_the_smallest_number_of_ranks_is_the_first_that_fits() -> None:
    data = DataSize(10**9, 10**6, 10**8, 384)
    for stage in STAGES:
        fewest = smallest_world_size(stage_of(config(), stage), data, GPU)
        assert fewest and fewest > 8
        assert plan_stage(stage_of(config(), stage), data, GPU, fewest).fits
        assert not plan_stage(stage_of(config(), stage), data, GPU, fewest - 1).fits
    whole = config(sparse={"sharding": "table_wise"})
    assert smallest_world_size(stage_of(whole, "pretrain"), data, GPU) is None
    assert smallest_world_size(stage_of(whole, "pretrain"), DATA, GPU) == 1


def test_cold_rows_in_host_memory_are_counted_there() -> None:
    data = DataSize(150_000_000, 10**6, 10**8, 384)
    assert not plan_stage(stage_of(config(), "pretrain"), data, GPU, 1).fits
    plan = plan_stage(stage_of(config(sparse={"uvm": True, "sharding": "planner"}), "pretrain"), data, GPU, 1)
    assert plan.fits
    assert plan.needed(on_host=True) > 150_000_000 * 128 * 4 > plan.needed()


def test_a_user_s_own_limit_stands_for_the_device_s() -> None:
    plan = plan_stage(stage_of(config(sparse={"memory_gib": 2}), "pretrain"), DATA, GPU, 1)
    assert plan.device.memory == 2 * GIB and plan.fits
    assert not plan_stage(stage_of(config(sparse={"memory_gib": 0.5}), "pretrain"), DATA, GPU, 1).fits


def test_what_cannot_fit_is_refused_with_what_is_needed_what_there_is_and_how_many_ranks_do(tmp_path: Path) -> None:
    entry = {"path": "x", "bytes": 1, "sha256": "0" * 64}
    items = FileEntry(**entry, rows=20_000_000, first_index=1)
    counts = {"items": items.rows, "users": 100, "interactions": 2000}
    groups = {"items": [items], "sequences": [FileEntry(**entry, rows=100)]}
    item_map = {"item_map": [[items.rows, "digest"]]}
    write_manifest(str(tmp_path), Manifest(counts=counts, parameters=item_map, groups=groups))
    chosen, machine = config(dataset=str(tmp_path)), Device("cpu", "cpu", 3 * GIB, 3 * GIB, 2)
    with pytest.raises(UserError) as refused:
        check_capacity(stage_of(chosen, "pretrain"), machine, 2)
    # Of 20,000,001 x 129 x 4 bytes each rank holds half, and a GiB beside.
    words = r"pretrain of 20,000,000 items needs (5\.\d+) GiB on each of 2 rank\(s\), which has 3 GiB for it: "
    match = re.fullmatch(words + r"use at least (\d+) ranks, 2 to a machine \(.*\)", str(refused.value))
    assert match and 10.32e9 / 2 / GIB < float(match[1]) < 10.32e9 / 2 / GIB + 1.5
    check_capacity(stage_of(chosen, "pretrain"), machine, int(match[2]))
    with pytest.raises(UserError, match=r"which has 0\.3 GiB for it: no number of ranks is enough"):
        limited = chosen.model_copy(update={"sparse": chosen.sparse.model_copy(update={"memory_gib": 0.3})})
        check_capacity(stage_of(limited, "pretrain"), machine, 2)


def test_ten_billion_rows_on_a_thousand_ranks_are_planned_without_memory() -> None:
    data = DataSize(10**10, 10**9, 10**11, 384)
    tracemalloc.start()
    plan = plan_stage(stage_of(config(), "disentangle"), data, profile("h200"), 1024)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert plan.fits and len(plan.blocks) == 2 * 1024
    assert sum(block.rows for block in plan.blocks) == 2 * (10**10 + 1)
    assert peak < 16 * 2**20


def test_sizes_come_from_the_dataset_or_are_given(tmp_path: Path) -> None:
    url = write_tiny_dataset(tmp_path / "dataset", random_sequences(20, 30), 30)
    size = data_size(config(dataset=url))
    assert (size.items, size.users, size.text_dim) == (30, 20, 384)
    assert data_size(config(dataset=url), items=10**9).items == 10**9
    with pytest.raises(UserError, match="or give the number of items with --items"):
        data_size(config(dataset=str(tmp_path / "none")))
    other = config(text={"model": "Some/Model"})
    assert data_size(other, items=5, text_dim=77).text_dim == 77
    with pytest.raises(UserError, match=r"width of Some/Model is not known .* --text-dim"):
        data_size(other, items=5)
