"""Tables of results in Markdown, each from run files alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from pad_dist.compare.results import METRICS, DatasetResult, MethodResult, Slice, everyone, in_bin, seen
from pad_dist.model.gate import BINS


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, closed by an empty one."""
    lines = [header, ["---"] * len(header), *rows]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def spread(values: Sequence[float]) -> str:
    """Mean and, of several seeds, their standard deviation.

    >>> spread([0.1, 0.2]), spread([0.1]), spread([])
    ('0.1500 ± 0.0707', '0.1000', '-')
    """
    if not values:
        return "-"
    return f"{np.mean(values):.4f}" + (f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else "")


def summary_table(results: Sequence[DatasetResult]) -> list[str]:
    """Our method and the baselines by data set: test hr@10 / ndcg@10, ndcg@10 of cold targets, and how many seeds."""
    names = dict.fromkeys(method.name for result in results for method in result.ran if method.role != "ablation")
    header = ["method", *(result.name for result in results)]
    return table(header, [[name, *(_summary_cell(result, name) for result in results)] for name in names])


def _summary_cell(result: DatasetResult, name: str) -> str:
    method = next(method for method in result.methods if method.name == name)
    if not method.runs:
        return "-"
    hits, gains = (np.mean(method.means("test", metric, everyone)) for metric in METRICS)
    cold = method.means("test", "ndcg@10", seen(0, result.cold))
    of_cold = f"{np.mean(cold):.4f}" if cold else "-"
    return f"{hits:.4f} / {gains:.4f}, {of_cold} ({len(method.runs)})"


def methods_table(result: DatasetResult) -> list[str]:
    """Each method that has runs on validation and test: all users, cold and popular targets."""
    cold, popular = seen(0, result.cold), seen(result.cold + 1, None)
    columns: list[tuple[str, str, str, Slice]] = [("valid hr@10", "valid", "hr@10", everyone)]
    for name, part in (("test", everyone), ("cold", cold), ("popular", popular)):
        columns += [(f"{name} {metric}", "test", metric, part) for metric in METRICS]
    rows = [
        [*_about(method), *(spread(method.means(split, metric, part)) for _, split, metric, part in columns)]
        for method in result.ran
    ]
    return table(["method", "role", "seeds", *(name for name, *_ in columns)], rows)


def frequency_table(result: DatasetResult, metric: str) -> list[str]:
    """A metric on test by frequency bin of the target, and for targets unseen or cold."""
    parts: list[tuple[str, Slice]] = [(str(number), in_bin(number)) for number in range(1, BINS)]
    parts.append(("frequency 0", seen(0, 0)))
    if result.cold:
        parts.append((f"1 to {result.cold}", seen(1, result.cold)))
    targets = result.ran[0].runs[0].target_ranks.splits["test"]
    users = [f"{int(part(targets).sum()):,}" for _, part in parts]
    rows = [[method.name, *(spread(method.means("test", metric, part)) for _, part in parts)] for method in result.ran]
    return table(["method", *(name for name, _ in parts)], [["users", *users], *rows])


def gains_table(result: DatasetResult, others: Sequence[MethodResult]) -> list[str]:
    """Ours against the other methods that have runs, on the same test users and seeds: all, cold and popular."""
    parts = (("all", everyone), ("cold", seen(0, result.cold)), ("popular", seen(result.cold + 1, None)))
    rows = []
    for other in (method for method in others if method.runs):
        seeds = str(len(result.common_seeds(other)))
        for where, part in parts:
            for metric in METRICS:
                paired = result.against(other, metric, part)
                if paired is None:
                    rows.append([other.name, seeds, where, metric, *["-"] * 5])
                    continue
                relative = "-" if paired.relative is None else f"{paired.relative:+.2%}"
                users = f"{paired.low:+.4f} to {paired.high:+.4f}"
                over_seeds = result.over_seeds(other, metric, part)
                trained = "-" if over_seeds is None else f"{over_seeds[0]:+.4f} to {over_seeds[1]:+.4f}"
                gain = f"{paired.difference:+.4f}"
                rows.append([other.name, seeds, where, metric, gain, relative, users, f"{paired.p:.4f}", trained])
    header = ["against", "seeds", "targets", "metric", "difference", "relative", "95 % interval, users", "p"]
    return table([*header, "95 % interval, seeds"], rows)


def forgetting_table(result: DatasetResult) -> list[str]:
    """What alignment does to the ID part alone, for the methods that align."""
    rows = []
    for method in result.methods:
        forgotten = [run.forgetting for run in method.runs if run.forgetting is not None]
        if not forgotten:
            continue
        scores = [
            [entry["test"][name]["hr@10"] for entry in forgotten]
            for name in ("before", "frozen_original", "aligned_table")
        ]
        losses = [after / before - 1 for before, after in zip(scores[0], scores[2], strict=True) if before]
        loss = f"{np.mean(losses):+.1%}" if losses else "-"
        taus = [[entry["kendall_tau"]["mean"] for entry in forgotten if entry["kendall_tau"]["mean"] is not None]]
        for number in range(1, BINS):
            values = [entry["kendall_tau"]["by_bin"][number - 1]["tau"] for entry in forgotten]
            taus.append([value for value in values if value is not None])
        cells = [f"{np.mean(tau):.3f}" if tau else "-" for tau in taus]
        rows.append([method.name, *(spread(values) for values in scores), loss, *cells])
    if not rows:
        return []
    header = ["method", "before", "frozen original", "aligned table alone", "change", "tau"]
    return table([*header, *(f"tau {number}" for number in range(1, BINS))], rows)


def seconds_table(result: DatasetResult) -> list[str]:
    """Seconds by step, mean over seeds; a stage that methods share was trained once."""
    stages = dict.fromkeys(stage for method in result.methods for run in method.runs for stage in run.stages)
    steps = [*stages, "evaluate"]
    return table(["method", *steps], [[m.name, *(_seconds(m, step) for step in steps)] for m in result.ran])


def _seconds(method: MethodResult, step: str) -> str:
    spent = [run.timings[step] for run in method.runs if step in run.timings]
    return f"{np.mean(spent):.0f}" if spent else "-"


def _about(method: MethodResult) -> list[str]:
    return [method.name, method.role, f"{len(method.runs)} of {method.seeds}"]
