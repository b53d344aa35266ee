import math

import pytest
import torch

from pad_dist.evaluation.metrics import COUNTS_SHAPE, rank_counts, summarize


def test_metrics_by_hand() -> None:
    target_ranks = torch.tensor([1, 3, 10, 11, 500])
    frequency = torch.tensor([90, 5, 6, 0, 4])
    bins = torch.tensor([1, 10, 9, 10, 10])
    metrics = summarize(rank_counts(target_ranks, frequency, bins, cold_max_frequency=5))
    assert metrics["users"] == 5
    assert metrics["hr@10"] == pytest.approx(3 / 5)
    assert metrics["ndcg@10"] == pytest.approx((1 + 1 / 2 + 1 / math.log2(11)) / 5)
    assert metrics["cold"] == pytest.approx({"users": 3, "hr@10": 1 / 3, "ndcg@10": 0.5 / 3})
    assert [entry["bin"] for entry in metrics["by_bin"]] == list(range(1, 11))
    assert metrics["by_bin"][0] == {"bin": 1, "users": 1, "hr@10": 1.0, "ndcg@10": 1.0}
    assert metrics["by_bin"][8] == pytest.approx({"bin": 9, "users": 1, "hr@10": 1.0, "ndcg@10": 1 / math.log2(11)})
    assert metrics["by_bin"][9] == pytest.approx({"bin": 10, "users": 3, "hr@10": 1 / 3, "ndcg@10": 0.5 / 3})
    assert metrics["by_bin"][4] == {"bin": 5, "users": 0, "hr@10": 0.0, "ndcg@10": 0.0}


@pytest.mark.parametrize("batch", [1, 77, 1000])
def test_any_batching_gives_exactly_the_same_metrics(batch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    target_ranks, frequency, bins = (torch.randint(1, high, (1000,), generator=generator) for high in (40, 30, 11))
    batches = zip(target_ranks.split(batch), frequency.split(batch), bins.split(batch), strict=True)
    total = torch.zeros(COUNTS_SHAPE, dtype=torch.float64)
    for part in batches:
        total += rank_counts(*part, 5)
    metrics = summarize(total)
    hit, gain = (target_ranks <= 10).double(), (target_ranks <= 10) / torch.log2(target_ranks.double() + 1)
    assert metrics["hr@10"] == hit.mean()
    assert metrics["ndcg@10"] == pytest.approx(float(gain.mean()), rel=1e-12)
    for entry in metrics["by_bin"]:
        assert entry["users"] == (bins == entry["bin"]).sum() > 0
        assert entry["ndcg@10"] == pytest.approx(float(gain[bins == entry["bin"]].mean()), rel=1e-12)
    assert metrics == summarize(rank_counts(target_ranks, frequency, bins, 5))


def test_no_users_is_zero_not_an_error() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert summarize(rank_counts(none, none, none, 5))["hr@10"] == 0.0
