"""The report of a run: one JSON file and one table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pad_dist import storage

Split = Literal["valid", "test"]
SPLITS: tuple[Split, ...] = ("valid", "test")
METRICS = ("hr@10", "ndcg@10")

Splits = Mapping[str, Any]
"""Metrics (`metrics.summarize`) by split, "valid" and "test"."""


def build_report(
    *,
    dataset: Mapping[str, Any],
    method: str,
    stages: Mapping[str, Splits],
    experts: Mapping[str, Splits],
    popularity: Splits,
    timings_s: Mapping[str, float],
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of report.json.

    Args:
        dataset: users, items, interactions and other facts.
        method: whose stages they are.
        stages: by stage name, in the order of training; of "disentangle" it is the mixture.
        experts: each expert of a mixture alone, by expert name.
        popularity: every user ranked by train frequency.
        timings_s: seconds by step.
        environment: versions, commit, machine.
    """
    return {
        "dataset": dict(dataset),
        "method": method,
        "stages": {name: dict(splits) for name, splits in stages.items()},
        "experts": {name: dict(splits) for name, splits in experts.items()},
        "popularity": dict(popularity),
        "timings_s": dict(timings_s),
        "environment": dict(environment),
    }


def write_report(url: str, report: Mapping[str, Any]) -> None:
    """Publish `<url>/report.json` atomically."""
    storage.write_json(storage.join(url, "report.json"), dict(report))


def console() -> Console:
    """Where tables are printed: the terminal, or wide enough for them where there is none."""
    return Console() if Console().is_terminal else Console(width=140)


def report_table(report: Mapping[str, Any]) -> Table:
    """Models by (split, overall and cold) hr@10 and ndcg@10; print it with rich."""
    dataset = report["dataset"]
    title = f"{dataset['users']:,} users, {dataset['items']:,} items, {dataset['interactions']:,} interactions"
    return metrics_table(title, dict(_rows(report)))


def metrics_table(title: str, rows: Mapping[str, Splits]) -> Table:
    """One row per model: its metrics by split."""
    table = Table(title=title, caption="hr@10 / ndcg@10, whole catalogue; cold: target rarely seen in training")
    table.add_column("model")
    for split in SPLITS:
        table.add_column(split, justify="right")
        table.add_column(f"{split} cold", justify="right")
    for name, splits in rows.items():
        cells = [_cell(part) for split in SPLITS for part in _overall_and_cold(splits.get(split))]
        table.add_row(name, *cells)
    return table


def bin_table(report: Mapping[str, Any], split: str = "test", metric: str = "hr@10") -> Table:
    """Models by frequency bin of the target, 1 (most popular) to 10 (rare and unseen)."""
    table = Table(title=f"{metric} by frequency bin of the target, {split}")
    table.add_column("model")
    rows = [(name, splits[split]["by_bin"]) for name, splits in _rows(report) if split in splits]
    for entry in rows[0][1] if rows else []:
        table.add_column(f"{entry['bin']}\n({entry['users']:,})", justify="right")
    for name, entries in rows:
        table.add_row(name, *(_number(entry, metric) for entry in entries))
    return table


def print_forgetting(title: str, forgetting: Mapping[str, Any]) -> None:
    """What alignment did to the ID part alone, and to the order of distances (`forgetting.measure_forgetting`)."""
    names = ("before", "frozen_original", "aligned_table")
    rows = {name.replace("_", " "): {str(split): forgetting[split][name] for split in SPLITS} for name in names}
    console().print(metrics_table(f"{title}: the ID part alone, before and after alignment", rows))
    taus = (
        (e["bin"], "-" if e["tau"] is None else f"{e['tau']:.3f}", e["items"])
        for e in forgetting["kendall_tau"]["by_bin"]
    )
    print_table("Kendall's tau of item distances, before and after", ("bin", "tau", "items"), taus)


def _rows(report: Mapping[str, Any]) -> Iterator[tuple[str, Splits]]:
    yield "most popular", report["popularity"]
    yield from report["stages"].items()
    for expert, splits in report["experts"].items():
        yield f"  {expert} expert alone", splits


def _overall_and_cold(metrics: Mapping[str, Any] | None) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    return (metrics, metrics["cold"]) if metrics else (None, None)


def _cell(metrics: Mapping[str, Any] | None) -> str:
    return " / ".join(_number(metrics, metric) for metric in METRICS) if metrics else "-"


def _number(metrics: Mapping[str, Any], metric: str) -> str:
    return f"{metrics[metric]:.4f}" if metrics["users"] else "-"


def print_table(title: str, header: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    """One table; a title alone where there is no row."""
    table = Table(title=title or None, title_justify="left")
    for name in header:
        table.add_column(Text(name), overflow="fold")
    for row in rows:
        # Text, as a file name may hold what rich takes for markup.
        table.add_row(*(Text(str(cell)) for cell in row))
    if table.row_count:
        console().print(table)
    else:
        print(f"{title}: none")
