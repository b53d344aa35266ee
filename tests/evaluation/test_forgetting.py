"""What alignment forgets: the aligned table alone, and the order of distances, alone and on two real gloo ranks."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from pad_dist.config import Config
from pad_dist.distributed.context import DistributedContext
from pad_dist.evaluation.evaluate import evaluate
from pad_dist.evaluation.forgetting import TableAlone, distance_order, sample_items
from pad_dist.stages.stage_runtime import StageRuntime, build_runtime
from tests.support.ranks import run_ranks
from tests.support.stages import stage_of
from tests.support.tiny_dataset import random_sequences, write_tiny_dataset
from tests.support.tiny_text import write_tiny_text

ITEMS = 60
UNUSED = (3, 31)


class Alone(DistributedContext):
    """One process without a group."""

    def gather(self, value: Any) -> list[Any]:
        return [value]


ALONE = Alone(0, 1, torch.device("cpu"), None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("dataset")
    url = write_tiny_dataset(folder, random_sequences(61, ITEMS, 1, inactive=UNUSED), ITEMS, inactive=UNUSED)
    write_tiny_text(url, 6)
    return url


def runtime_of(url: str, stage: str, context: DistributedContext) -> StageRuntime:
    """An untrained stage: the same weights at any world size; both stages' encoders are alike."""
    values = {
        "name": "tiny",
        "dataset": url,
        "model": {"dim": 8, "max_length": 5},
        "sparse": {"backend": "torch" if context.world_size == 1 else "torchrec", "init_std": 1.0},
        "evaluation": {"batch_size": 16},
    }
    runtime = build_runtime(stage_of(Config.model_validate(values), stage), context)
    runtime.tables.initialise(seed=3, std=1.0)
    torch.manual_seed(5)
    for weight in runtime.model.expert("id" if stage == "pretrain" else "aligned").encoder.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    runtime.model.eval()
    return runtime


def table_alone_and_samples(url: str, context: DistributedContext | None = None) -> tuple[Any, list[list[int]]]:
    """Metrics of the aligned table alone, and the sampled items."""
    group: Any = dist.group.WORLD
    context = context or DistributedContext(dist.get_rank(), dist.get_world_size(), torch.device("cpu"), group)
    aligned = runtime_of(url, "align", context)
    by_bin, others = sample_items(aligned, 7, per_bin=3, others=20)
    metrics = evaluate(aligned, TableAlone(aligned).eval(), "test", ["id"])
    return metrics, [items.tolist() for items in (*by_bin, others)]


def test_the_table_alone_ranks_as_an_id_model_of_its_rows_does(url: str) -> None:
    pretrain, aligned = runtime_of(url, "pretrain", ALONE), runtime_of(url, "align", ALONE)
    (target,), (rows,) = pretrain.tables.weights(), aligned.tables.weights()
    target.tensor.copy_(rows.tensor)
    expected = evaluate(pretrain, pretrain.model, "test", ["id"])
    assert evaluate(aligned, TableAlone(aligned).eval(), "test", ["id"]) == expected
    assert evaluate(aligned, aligned.model, "test", ["aligned"])["aligned"] != expected["id"]
    assert 0 < expected["id"]["hr@10"] < 1


def test_any_ranks_find_what_one_does(url: str) -> None:
    alone = table_alone_and_samples(url, ALONE)
    assert run_ranks(table_alone_and_samples, 2, url) == [alone, alone]


def test_samples_are_items_in_use_of_their_bin_and_another_seed_draws_others(url: str) -> None:
    runtime = runtime_of(url, "pretrain", ALONE)
    by_bin, others = sample_items(runtime, 7, per_bin=3, others=20)
    bins = runtime.dataset.item_columns(0, ITEMS + 1)[1]
    for number, items in enumerate(by_bin, 1):
        assert set(bins[items.numpy()]) <= {number} and len(items) == min(3, int((bins == number).sum()))
        assert items.tolist() == sorted(set(items.tolist()))
    assert len(others) == 20 and not {0, *UNUSED} & set(others.tolist())
    assert sample_items(runtime, 8, per_bin=3, others=20)[1].tolist() != others.tolist()


def test_tau_is_one_for_a_turn_and_falls_with_noise() -> None:
    rng = np.random.default_rng(0)
    before = [rng.normal(size=(n, 8)) for n in (10, 10, 40)]
    turn, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    same = distance_order(before, [3 * rows @ turn for rows in before])
    assert same["mean"] == pytest.approx(1) and [entry["items"] for entry in same["by_bin"]] == [10, 10]
    little, much = (distance_order(before, [r + s * rng.normal(size=r.shape) for r in before]) for s in (0.1, 1.0))
    other = distance_order(before, [rng.normal(size=rows.shape) for rows in before])
    assert 0.8 < little["mean"] < 1 and 0.1 < much["mean"] < 0.7 and abs(other["mean"]) < 0.1


def test_bins_are_told_apart_and_what_has_no_order_is_none() -> None:
    rng = np.random.default_rng(1)
    others = rng.normal(size=(30, 4))
    kept, lost = rng.normal(size=(5, 4)), rng.normal(size=(6, 4))
    orders = distance_order([kept, lost, kept[:0], others], [kept, -4 * lost, kept[:0], others])
    assert orders["by_bin"][0] == {"bin": 1, "tau": pytest.approx(1), "items": 5}
    assert orders["by_bin"][1]["tau"] < 0.5
    assert orders["by_bin"][2] == {"bin": 3, "tau": None, "items": 0}
    flat = distance_order([kept, others], [kept, np.zeros_like(others)])
    assert flat == {"mean": None, "by_bin": [{"bin": 1, "tau": None, "items": 0}]}
