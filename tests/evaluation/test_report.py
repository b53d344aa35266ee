import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.table import Table

from pad_dist.evaluation.metrics import rank_counts, summarize
from pad_dist.evaluation.report import bin_table, build_report, report_table, write_report


def splits(hits: int) -> dict[str, Any]:
    """Of 8 users, `hits` are ranked first in valid and one fewer in test; half the users are cold, in bin 10."""
    target_ranks = {"valid": [1] * hits + [99] * (8 - hits), "test": [1] * (hits - 1) + [99] * (9 - hits)}
    frequency, bins = torch.tensor([0, 50] * 4), torch.tensor([10, 2] * 4)
    return {
        name: summarize(rank_counts(torch.tensor(values), frequency, bins, 5)) for name, values in target_ranks.items()
    }


@pytest.fixture
def report() -> dict[str, Any]:
    return build_report(
        dataset={"users": 8000, "items": 20, "interactions": 64},
        method="pad",
        stages={"pretrain": splits(3), "disentangle": splits(7)},
        experts={"id": splits(4), "text": splits(2)},
        popularity=splits(1),
        timings_s={"pretrain": 1.5},
        environment={"torch": "x"},
    )


def printed(table: Table) -> list[str]:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines()


def row(lines: list[str], name: str) -> list[str]:
    (line,) = [line for line in lines if line.strip("│ ").startswith(name)]
    return [cell.strip() for cell in line.strip("│ ").split("│")][1:]


def test_the_file_has_the_published_structure(report: dict[str, Any], tmp_path: Path) -> None:
    write_report(str(tmp_path), report)
    written = json.loads((tmp_path / "report.json").read_text())
    assert written == report
    assert {"dataset", "method", "stages", "timings_s", "environment"} <= set(written)
    metrics = written["stages"]["disentangle"]["test"]
    assert set(metrics) == {"hr@10", "ndcg@10", "users", "cold", "by_bin"}
    assert set(metrics["cold"]) == {"hr@10", "ndcg@10", "users"}
    assert all(set(entry) == {"bin", "users", "hr@10", "ndcg@10"} for entry in metrics["by_bin"])


def test_the_table_has_every_model_in_stage_order(report: dict[str, Any]) -> None:
    lines = printed(report_table(report))
    order = ["most popular", "pretrain", "disentangle", "id expert alone", "text expert alone"]
    places = [next(i for i, line in enumerate(lines) if name in line) for name in order]
    assert places == sorted(places)
    assert "8,000 users, 20 items, 64 interactions" in lines[0]
    assert row(lines, "most popular") == ["0.1250 / 0.1250", "0.2500 / 0.2500", "0.0000 / 0.0000", "0.0000 / 0.0000"]
    assert row(lines, "disentangle") == ["0.8750 / 0.8750", "1.0000 / 1.0000", "0.7500 / 0.7500", "0.7500 / 0.7500"]


def test_a_split_that_was_not_evaluated_is_a_dash(report: dict[str, Any]) -> None:
    del report["stages"]["pretrain"]["test"]
    assert row(printed(report_table(report)), "pretrain")[2:] == ["-", "-"]


def test_bins_show_users_and_leave_empty_ones_blank(report: dict[str, Any]) -> None:
    lines = printed(bin_table(report))
    assert row(lines, "disentangle") == ["-", "0.7500", *["-"] * 7, "0.7500"]
    assert any("(4)" in line for line in lines)
