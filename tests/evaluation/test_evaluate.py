"""Metrics of a whole system against a brute-force oracle, alone and on two real gloo ranks."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from pad_dist.config import Config, ModelConfig
from pad_dist.data.dataset import Dataset
from pad_dist.errors import UserError
from pad_dist.evaluation import evaluate as module
from pad_dist.evaluation.evaluate import Metrics, evaluate, scorers_of
from pad_dist.evaluation.rank_file import MOST, RankRecorder
from pad_dist.model.pad import Pad
from pad_dist.stages.system import System, build_system
from pad_dist.training.ranks import Ranks
from tests.support.ranks import run_ranks
from tests.support.tiny_dataset import leave_one_out, random_sequences, time_splits, write_tiny_dataset

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


def system_of(url: str, ranks: Ranks) -> System:
    """An untrained first stage: the same weights at any world size."""
    values = {
        "name": "tiny",
        "dataset": url,
        "model": {"dim": 8, "max_length": L, "positions": "end"},
        "sparse": {"backend": "torch" if ranks.world_size == 1 else "torchrec", "init_std": 1.0},
        "evaluation": {"batch_size": 16, "cold_max_frequency": COLD},
    }
    system = build_system(Config.model_validate(values), "pretrain", ranks)
    system.tables.initialise(seed=3, std=1.0)
    system.pad.eval()
    return system


def results(urls: list[str], ranks: Ranks) -> Results:
    """Metrics, and on the first rank the list of every user's rank, frequency and bin beside them."""
    found = {}
    for url in urls:
        system = system_of(url, ranks)
        for split in SPLITS:
            recorder = RankRecorder(SCORERS, system.dataset.users) if ranks.is_first else None
            metrics = evaluate(system, system.pad, split, SCORERS, recorder)
            users = recorder.result() if recorder else None
            for name in SCORERS if users else ():
                columns = (users.ranks[name], users.frequency, users.bins)
                metrics[name]["every user"] = [column.tolist() for column in columns]
            found[f"{Path(url).name} {split}"] = metrics
    return found


def without_users(found: Results) -> Results:
    """As ranks other than the first have it."""
    drop = lambda metrics: {key: value for key, value in metrics.items() if key != "every user"}  # noqa: E731
    return {name: {scorer: drop(metrics) for scorer, metrics in by.items()} for name, by in found.items()}


def results_on_ranks(urls: list[str], without_targets: str) -> tuple[Results, Results, str]:
    """With the catalogue in one block and in several, and what is said of a dataset without targets."""
    module.LOOKUP_ROWS = BLOCK
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), torch.device("cpu"), dist.group.WORLD)
    system = system_of(without_targets, ranks)
    try:
        evaluate(system, system.pad, "valid", SCORERS)
    except UserError as error:
        one_block = results(urls, ranks)
        module.VECTOR_BYTES, module.USER_BYTES = FEW_BYTES
        return one_block, results(urls, ranks), str(error)
    return {}, {}, "evaluated"


ALONE = Ranks(0, 1, torch.device("cpu"), None)  # type: ignore[arg-type]


@torch.no_grad()
def oracle(url: str, split: Split) -> dict[str, Metrics]:
    """One user and one item at a time, from the weights of a system alone."""
    system = system_of(url, ALONE)
    frequency, bins = system.dataset.item_columns(0, ITEMS + 1)
    vectors = system.pad.catalogue(system.rows(torch.arange(ITEMS + 1)))
    ranked: dict[str, list[tuple[int, float]]] = {name: [] for name in SCORERS}
    for history, target in held_out(system.dataset, split):
        context = torch.tensor(history[-L:])
        (user,) = system.pad.encode(torch.arange(len(context)), torch.tensor([len(context)]), system.rows(context))
        for name in SCORERS:
            score = {
                i: -math.inf if i in history else float(user @ vectors[i] if name == "id" else frequency[i])
                for i in range(1, ITEMS + 1)
                if bins[i] > 0
            }
            others = [value for i, value in score.items() if i != target]
            rank = math.inf if target in history else 1 + sum(value >= score[target] for value in others)
            ranked[name].append((target, rank))
    return {name: metrics_of(ranks, frequency, bins) for name, ranks in ranked.items()}


def held_out(dataset: Dataset, split: Split) -> Iterator[tuple[list[int], int]]:
    """History and target of every user who has one."""
    for shard in range(len(dataset.shard_rows)):
        histories = dataset.sequences(shard)
        for start, place in zip(histories.offsets, getattr(histories, split), strict=False):
            if place >= 0:
                items = histories.items[start : start + place + 1].tolist()
                yield items[:-1], items[-1]


def metrics_of(ranks: list[tuple[int, float]], frequency: Any, bins: Any) -> Metrics:
    def means(part: list[float]) -> Metrics:
        hits = [rank for rank in part if rank <= 10]
        gain = sum(1 / math.log2(rank + 1) for rank in hits)
        users = max(1, len(part))
        return {"hr@10": len(hits) / users, "ndcg@10": pytest.approx(gain / users), "users": len(part)}

    cold = means([rank for target, rank in ranks if frequency[target] <= COLD])
    by_bin = [{"bin": b, **means([rank for target, rank in ranks if bins[target] == b])} for b in range(1, 11)]
    whole = (
        [min(rank, MOST) for _, rank in ranks],
        *([int(of[target]) for target, _ in ranks] for of in (frequency, bins)),
    )
    return {**means([rank for _, rank in ranks]), "cold": cold, "by_bin": by_bin, "every user": list(whole)}


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
    mixed = Pad(("aligned", "text"), ModelConfig(), 5, gate=None)
    assert scorers_of(mixed) == ["aligned", "text", "mixture", "popularity"]
    assert scorers_of(Pad(("id",), ModelConfig(), 0)) == ["id", "popularity"]


def test_one_rank_equals_the_oracle(urls: list[str]) -> None:
    expected = {f"{Path(url).name} {split}": oracle(url, split) for url in urls for split in SPLITS}
    assert results(urls, ALONE) == expected
    assert all(0 < found["id"]["hr@10"] < 1 and found["id"]["cold"]["users"] for found in expected.values())


def test_any_ranks_and_blocks_equal_one(
    urls: list[str], on_ranks: list[tuple[Results, Results, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = results(urls, ALONE)
    assert on_ranks[0][:2] == (alone, alone)
    assert [found[:2] for found in on_ranks[1:]] == [(without_users(alone),) * 2] * (len(on_ranks) - 1)
    for name, few in zip(("VECTOR_BYTES", "USER_BYTES"), FEW_BYTES, strict=True):
        monkeypatch.setattr(module, name, few)
    assert results(urls, ALONE) == alone


def test_vectors_are_made_once_in_one_block_and_else_twice_for_each_group_of_users(
    urls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    system = system_of(urls[0], ALONE)
    asked: list[Tensor] = []
    catalogue = Pad.catalogue
    monkeypatch.setattr(
        Pad, "catalogue", lambda self, rows, **kw: asked.append(rows["bin"]) or catalogue(self, rows, **kw)
    )
    evaluate(system, system.pad, "valid", ["id"])
    assert sum(map(len, asked)) == ITEMS
    asked.clear()
    monkeypatch.setattr(module, "VECTOR_BYTES", FEW_BYTES[0])
    evaluate(system, system.pad, "valid", ["id"])
    assert sum(map(len, asked)) == 2 * ITEMS and max(map(len, asked)) <= BLOCK
    asked.clear()
    monkeypatch.setattr(module, "USER_BYTES", FEW_BYTES[1])
    evaluate(system, system.pad, "valid", ["id"])
    assert 2 * 2 * ITEMS <= sum(map(len, asked)) <= 2 * 4 * ITEMS


def test_only_users_with_a_target_count(urls: list[str]) -> None:
    for url in urls:
        system = system_of(url, ALONE)
        for split in SPLITS:
            users = len(list(held_out(system.dataset, split)))
            assert (users == 61) is ("leave-one-out" in url)
            assert evaluate(system, system.pad, split, ["popularity"])["popularity"]["users"] == users > 0


def test_a_split_without_any_target_is_refused_on_every_rank(
    without_targets: str, on_ranks: list[tuple[Results, Results, str]]
) -> None:
    system = system_of(without_targets, ALONE)
    with pytest.raises(UserError, match=r"no user has a valid target, .*: change data\.split") as refusal:
        evaluate(system, system.pad, "valid", SCORERS)
    assert [message for *_, message in on_ranks] == [str(refusal.value)] * len(on_ranks)
    assert "\n" not in str(refusal.value)
    assert evaluate(system, system.pad, "test", SCORERS)["id"]["users"] == 20


def test_items_are_read_once_for_all_validations(urls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    system = system_of(urls[0], ALONE)
    read: list[str] = []
    whole = Dataset._read
    monkeypatch.setattr(
        Dataset, "_read", lambda self, entry, columns: read.append(entry.path) or whole(self, entry, columns)
    )
    for _ in range(2):
        evaluate(system, system.pad, "valid", SCORERS)
    assert not [path for path in read if path.startswith("items/")]
    assert [path for path in read if path.startswith("sequences/")]
