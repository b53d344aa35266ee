"""Metrics of a whole stage against a brute-force oracle, alone and on two real gloo ranks."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from pad_dist.config import Config, DisentangleConfig, ModelConfig
from pad_dist.dataset.reader import Dataset
from pad_dist.distributed.context import DistributedContext
from pad_dist.errors import UserError
from pad_dist.evaluation import evaluate as module
from pad_dist.evaluation.evaluate import Metrics, evaluate, scorers_of
from pad_dist.evaluation.target_ranks import MOST, TargetRankRecorder
from pad_dist.model.recommender import Recommender
from pad_dist.stages.stage_runtime import StageRuntime, build_runtime
from tests.support.ranks import run_ranks
from tests.support.stages import stage_of
from tests.support.tiny_dataset import leave_one_out, random_sequences, time_splits, write_tiny_dataset

pytestmark = pytest.mark.slow

ITEMS, L, COLD = 40, 5, 4
SCORERS = ("id", "popularity")
INACTIVE = {"none": (), "some": (1, 7, 8, 20, 33, 40), "all of the last rank": tuple(range(21, ITEMS + 1))}
BLOCK = 7
"""Catalogue rows looked up at a time: several blocks, and with inactive items fewer on one rank than on the other."""
FEW_BYTES = (10 * (8 * 4 + 8), 2000)
"""Of vectors, ten items of both scorers, and of users, about a batch and a half."""
Split = Literal["valid", "test"]
SPLITS: tuple[Split, ...] = ("valid", "test")
Results = dict[str, dict[str, Metrics]]
"""Of each dataset and split ("time none 2 test"): metrics by scorer."""


def write_datasets(folder: Path) -> list[str]:
    """Each kind of split with each choice of inactive items, every one from another seed."""
    urls = []
    for kind, split in (("leave-one-out", lambda sequences, _: leave_one_out(sequences)), ("time", time_splits)):
        for seed, (name, inactive) in enumerate(INACTIVE.items()):
            sequences = random_sequences(61, ITEMS, seed, inactive=inactive)
            directory = folder / f"{kind} {name} {seed}"
            urls.append(
                write_tiny_dataset(directory, sequences, ITEMS, splits=split(sequences, seed), inactive=inactive)
            )
    return urls


def runtime_of(url: str, context: DistributedContext) -> StageRuntime:
    """An untrained first stage: the same weights at any world size."""
    values = {
        "name": "tiny",
        "dataset": url,
        "model": {"dim": 8, "max_length": L, "backbone": {"positions": "end"}},
        "sparse": {"backend": "torch" if context.world_size == 1 else "torchrec", "init_std": 1.0},
        "evaluation": {"batch_size": 16, "cold_max_frequency": COLD},
    }
    runtime = build_runtime(stage_of(Config.model_validate(values), "pretrain"), context)
    runtime.tables.initialise(seed=3, std=1.0)
    runtime.model.eval()
    return runtime


def results(urls: list[str], context: DistributedContext) -> Results:
    """Metrics, and on the first rank the target rank, frequency and bin of every user beside them."""
    by_dataset = {}
    for url in urls:
        runtime = runtime_of(url, context)
        for split in SPLITS:
            recorder = TargetRankRecorder(SCORERS, runtime.dataset.users) if context.is_first else None
            metrics = evaluate(runtime, runtime.model, split, SCORERS, recorder)
            users = recorder.result() if recorder else None
            for name in SCORERS if users else ():
                columns = (users.by_scorer[name], users.frequency, users.bins)
                metrics[name]["every user"] = [column.tolist() for column in columns]
            by_dataset[f"{Path(url).name} {split}"] = metrics
    return by_dataset


def without_users(whole: Results) -> Results:
    """As ranks other than the first have it."""
    drop = lambda metrics: {key: value for key, value in metrics.items() if key != "every user"}  # noqa: E731
    return {name: {scorer: drop(metrics) for scorer, metrics in by.items()} for name, by in whole.items()}


def results_on_ranks(urls: list[str], without_targets: str) -> tuple[Results, Results, str]:
    """With the catalogue in one block and in several, and what is said of a dataset without targets."""
    module.LOOKUP_ROWS = BLOCK
    context = DistributedContext(dist.get_rank(), dist.get_world_size(), torch.device("cpu"), dist.group.WORLD)  # type: ignore[arg-type]
    runtime = runtime_of(without_targets, context)
    try:
        evaluate(runtime, runtime.model, "valid", SCORERS)
    except UserError as error:
        one_block = results(urls, context)
        module.VECTOR_BYTES, module.USER_BYTES = FEW_BYTES
        return one_block, results(urls, context), str(error)
    return {}, {}, "evaluated"


ALONE = DistributedContext(0, 1, torch.device("cpu"), None)  # type: ignore[arg-type]


@torch.no_grad()
def oracle(url: str, split: Split) -> dict[str, Metrics]:
    """One user and one item at a time, from the weights alone."""
    runtime = runtime_of(url, ALONE)
    frequency, bins = runtime.dataset.item_columns(0, ITEMS + 1)
    vectors = runtime.model.catalogue(runtime.rows(torch.arange(ITEMS + 1)))
    ranked: dict[str, list[tuple[int, float]]] = {name: [] for name in SCORERS}
    for history, target in held_out(runtime.dataset, split):
        items = torch.tensor(history[-L:])
        (user,) = runtime.model.encode(torch.arange(len(items)), torch.tensor([len(items)]), runtime.rows(items))
        for name in SCORERS:
            score = {
                i: -math.inf if i in history else float(user @ vectors[i] if name == "id" else frequency[i])
                for i in range(1, ITEMS + 1)
                if bins[i] > 0
            }
            others = [value for i, value in score.items() if i != target]
            target_rank = math.inf if target in history else 1 + sum(value >= score[target] for value in others)
            ranked[name].append((target, target_rank))
    return {name: metrics_of(target_ranks, frequency, bins) for name, target_ranks in ranked.items()}


def held_out(dataset: Dataset, split: Split) -> Iterator[tuple[list[int], int]]:
    """History and target of every user who has one."""
    for shard in range(len(dataset.shard_rows)):
        histories = dataset.sequences(shard)
        for start, place in zip(histories.offsets, getattr(histories, split), strict=False):
            if place >= 0:
                items = histories.items[start : start + place + 1].tolist()
                yield items[:-1], items[-1]


def metrics_of(target_ranks: list[tuple[int, float]], frequency: Any, bins: Any) -> Metrics:
    def means(part: list[float]) -> Metrics:
        hits = [target_rank for target_rank in part if target_rank <= 10]
        gain = sum(1 / math.log2(target_rank + 1) for target_rank in hits)
        users = max(1, len(part))
        return {"hr@10": len(hits) / users, "ndcg@10": pytest.approx(gain / users), "users": len(part)}

    cold = means([target_rank for target, target_rank in target_ranks if frequency[target] <= COLD])
    by_bin = [
        {"bin": b, **means([target_rank for target, target_rank in target_ranks if bins[target] == b])}
        for b in range(1, 11)
    ]
    whole = (
        [min(target_rank, MOST) for _, target_rank in target_ranks],
        *([int(of[target]) for target, _ in target_ranks] for of in (frequency, bins)),
    )
    return {
        **means([target_rank for _, target_rank in target_ranks]),
        "cold": cold,
        "by_bin": by_bin,
        "every user": list(whole),
    }


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_datasets(tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="module")
def without_targets(tmp_path_factory: pytest.TempPathFactory) -> str:
    sequences = random_sequences(20, ITEMS)
    splits = [(len(sequence) - 1, -1, len(sequence) - 1) for sequence in sequences]
    return write_tiny_dataset(tmp_path_factory.mktemp("dataset"), sequences, ITEMS, splits=splits)


@pytest.fixture(scope="module", params=[2, 3])
def on_ranks(
    request: pytest.FixtureRequest, urls: list[str], without_targets: str
) -> list[tuple[Results, Results, str]]:
    return run_ranks(results_on_ranks, request.param, urls, without_targets, timeout=120)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOKUP_ROWS", BLOCK)


def test_experts_that_are_mixed_are_ranked_alone_and_together() -> None:
    mixed = Recommender(("aligned", "text"), ModelConfig(), 5, DisentangleConfig(gate="none"))
    assert scorers_of(mixed) == ["aligned", "text", "mixture", "popularity"]
    assert scorers_of(Recommender(("id",), ModelConfig(), 0)) == ["id", "popularity"]


def test_one_rank_equals_the_oracle(urls: list[str]) -> None:
    expected = {f"{Path(url).name} {split}": oracle(url, split) for url in urls for split in SPLITS}
    assert results(urls, ALONE) == expected
    assert all(0 < one["id"]["hr@10"] < 1 and one["id"]["cold"]["users"] for one in expected.values())


def test_any_ranks_and_blocks_equal_one(
    urls: list[str], on_ranks: list[tuple[Results, Results, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = results(urls, ALONE)
    assert on_ranks[0][:2] == (alone, alone)
    assert [both for *both, _ in on_ranks[1:]] == [[without_users(alone)] * 2] * (len(on_ranks) - 1)
    for name, few in zip(("VECTOR_BYTES", "USER_BYTES"), FEW_BYTES, strict=True):
        monkeypatch.setattr(module, name, few)
    assert results(urls, ALONE) == alone


def test_vectors_are_made_once_in_one_block_and_else_twice_for_each_group_of_users(
    urls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = runtime_of(urls[0], ALONE)
    asked: list[Tensor] = []
    catalogue = Recommender.catalogue
    monkeypatch.setattr(
        Recommender, "catalogue", lambda self, rows, **kw: asked.append(rows["bin"]) or catalogue(self, rows, **kw)
    )
    evaluate(runtime, runtime.model, "valid", ["id"])
    assert sum(map(len, asked)) == ITEMS
    asked.clear()
    monkeypatch.setattr(module, "VECTOR_BYTES", FEW_BYTES[0])
    evaluate(runtime, runtime.model, "valid", ["id"])
    assert sum(map(len, asked)) == 2 * ITEMS and max(map(len, asked)) <= BLOCK
    asked.clear()
    monkeypatch.setattr(module, "USER_BYTES", FEW_BYTES[1])
    evaluate(runtime, runtime.model, "valid", ["id"])
    assert 2 * 2 * ITEMS <= sum(map(len, asked)) <= 2 * 4 * ITEMS


def test_only_users_with_a_target_count(urls: list[str]) -> None:
    for url in urls:
        runtime = runtime_of(url, ALONE)
        for split in SPLITS:
            users = len(list(held_out(runtime.dataset, split)))
            assert (users == 61) is ("leave-one-out" in url)
            assert evaluate(runtime, runtime.model, split, ["popularity"])["popularity"]["users"] == users > 0


def test_a_split_without_any_target_is_refused_on_every_rank(
    without_targets: str, on_ranks: list[tuple[Results, Results, str]]
) -> None:
    runtime = runtime_of(without_targets, ALONE)
    with pytest.raises(UserError, match=r"no user has a valid target, .*: change data\.split") as refusal:
        evaluate(runtime, runtime.model, "valid", SCORERS)
    assert [message for *_, message in on_ranks] == [str(refusal.value)] * len(on_ranks)
    assert "\n" not in str(refusal.value)
    assert evaluate(runtime, runtime.model, "test", SCORERS)["id"]["users"] == 20


def test_items_are_read_once_for_all_validations(urls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = runtime_of(urls[0], ALONE)
    read: list[str] = []
    whole = Dataset._read
    monkeypatch.setattr(
        Dataset, "_read", lambda self, entry, columns: read.append(entry.path) or whole(self, entry, columns)
    )
    for _ in range(2):
        evaluate(runtime, runtime.model, "valid", SCORERS)
    assert not [path for path in read if path.startswith("items/")]
    assert [path for path in read if path.startswith("sequences/")]
