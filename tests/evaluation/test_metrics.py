import math

import pytest
import torch

from pad_dist.evaluation.metrics import metric_sums, ranking_metrics, summarize


def test_metrics_by_hand() -> None:
    ranks = torch.tensor([1, 3, 10, 11, 500])
    frequency = torch.tensor([90, 5, 6, 0, 4])
    bins = torch.tensor([1, 10, 9, 10, 10])
    found = ranking_metrics(ranks, frequency, bins, cold_max_frequency=5)
    assert found["users"] == 5
    assert found["hr@10"] == pytest.approx(3 / 5)
    assert found["ndcg@10"] == pytest.approx((1 + 1 / 2 + 1 / math.log2(11)) / 5)
    assert found["cold"] == pytest.approx({"users": 3, "hr@10": 1 / 3, "ndcg@10": 0.5 / 3})
    assert [entry["bin"] for entry in found["by_bin"]] == list(range(1, 11))
    assert found["by_bin"][0] == {"bin": 1, "users": 1, "hr@10": 1.0, "ndcg@10": 1.0}
    assert found["by_bin"][8] == pytest.approx({"bin": 9, "users": 1, "hr@10": 1.0, "ndcg@10": 1 / math.log2(11)})
    assert found["by_bin"][9] == pytest.approx({"bin": 10, "users": 3, "hr@10": 1 / 3, "ndcg@10": 0.5 / 3})
    assert found["by_bin"][4] == {"bin": 5, "users": 0, "hr@10": 0.0, "ndcg@10": 0.0}


def test_sums_of_parts_add_up_to_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    ranks, frequency, bins = (torch.randint(1, high, (1000,), generator=generator) for high in (40, 30, 11))
    whole = ranking_metrics(ranks, frequency, bins, 5)
    parts = [
        metric_sums(r, f, b, 5) for r, f, b in zip(ranks.split(77), frequency.split(77), bins.split(77), strict=True)
    ]
    joined = summarize(torch.stack(parts).sum(0))
    assert joined["users"] == whole["users"] == 1000
    assert joined["hr@10"] == whole["hr@10"] > 0
    assert joined["ndcg@10"] == pytest.approx(whole["ndcg@10"], rel=1e-12)
    assert sum(entry["users"] for entry in joined["by_bin"]) == 1000


def test_no_users_is_zero_not_an_error() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert ranking_metrics(none, none, none, 5)["hr@10"] == 0.0
