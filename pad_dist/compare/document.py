"""The documents of a comparison, written from the records of its runs: no number in a table comes from elsewhere."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from pad_dist.compare.config import Comparison, findings_of
from pad_dist.compare.results import DatasetResult, MethodResult, RunResult
from pad_dist.compare.tables import (
    forgetting_table,
    frequency_table,
    gains_table,
    methods_table,
    seconds_table,
    summary_table,
    table,
)
from pad_dist.evaluation.significance import RESAMPLES

SUMMARY = """\
# Results

`pad-dist compare --config {config}` writes this page from the records in {results}.
A run that has a record is not trained again. Remove the record to repeat it.

Every target is ranked among the whole catalogue. Earlier items of the user are left out, and ties count against the
target. Validation hr@10 selects the checkpoints. Cells are test hr@10 / ndcg@10, then ndcg@10 of cold targets, which
training has seen at most {cold} times; each is the mean over the seeds (of {seeds}) that have run.
"""
DETAILS = """\
# {name}

`pad-dist compare --config {config}` writes this page.
[The summary]({summary}) says how targets are ranked, and [methods.md](methods.md) what each method changes.
Cells are the mean ± standard deviation over the seeds {seeds}. A target is cold if training has seen it at most {cold}
times, else popular.
"""
METHODS = """\
# Methods

The methods of `pad-dist compare --config {config}`, each with what it changes in the config of a data set.
"""
GAINS = """\
## {ours} against the others

The best baseline by validation hr@10 is {valid}, by test hr@10 {test}. The p values are two-sided, from a
paired bootstrap over the {users} test users ({resamples:,} resamples), {cold} of them with a cold target. Each user's
metric is first averaged over the seeds that both methods ran. The p value and the interval over users take the trained
models as given: two seeds of one method often differ with p < .05. The interval over seeds (Student's t) covers the
spread of training instead.
"""
ANEW = """\
These methods did not reuse the trained stages of {ours}. They trained stages of the same settings again, on another
machine or commit, so their differences to {ours} include the spread of training: {methods}.
"""
FORGETTING = """\
## Forgetting

Test hr@10 of three ID models: the pretrain stage before alignment; the same stage evaluated again after it, which a
mixture with `id` in `disentangle.freeze` uses; and the aligned table without text, with its own encoder. Change
compares the last with the first. Tau is Kendall's tau-b between the distances of items before and after alignment, by
frequency bin of the item.
"""
SECONDS = """\
## Seconds

Data: {data}.

Mean over the seeds whose time is known. A stage that several methods share was trained once; its time is given for each
of them.
"""


def write_documents(comparison: Comparison, config_path: str, results: Sequence[DatasetResult]) -> dict[str, str]:
    """All pages by their path: the summary, a page for each data set, and the methods."""
    pages = {
        comparison.report: _summary(comparison, config_path, results),
        f"{comparison.results}/methods.md": "\n".join([METHODS.format(config=config_path), *_methods(comparison)]),
    }
    for result in results:
        pages[f"{comparison.results}/{result.name}.md"] = _details(comparison, config_path, result)
    return {path: text.rstrip("\n") + "\n" for path, text in pages.items()}


def _summary(comparison: Comparison, config_path: str, results: Sequence[DatasetResult]) -> str:
    cold = " or ".join(dict.fromkeys(str(result.cold) for result in results))
    seeds = ", ".join(map(str, comparison.seeds))
    about = {"results": comparison.results, "config": config_path, "cold": cold, "seeds": seeds}
    folder = os.path.relpath(comparison.results, os.path.dirname(comparison.report) or ".")
    links = ", ".join(f"[{result.name}]({folder}/{result.name}.md)" for result in results)
    lines = [SUMMARY.format(**about), *summary_table(results)]
    lines += [
        "More: what each method changes",
        f"([methods]({folder}/methods.md)); validation, popular targets, ablations,",
    ]
    lines += [f"significance, forgetting and seconds by data set ({links}).\n"]
    return "\n".join(lines + ([findings_of(comparison, config_path)] if comparison.findings else []))


def _methods(comparison: Comparison) -> list[str]:
    rows = []
    for name, method in comparison.methods.items():
        changes = " ".join(f"`{text}`" for text in method.overrides) or "-"
        rows.append([name, method.role, changes.replace("|", "\\|")])
    return table(["method", "role", "changes in the data set's config"], rows)


def _details(comparison: Comparison, config_path: str, result: DatasetResult) -> str:
    section = comparison.datasets[result.name]
    summary = os.path.relpath(comparison.report, comparison.results)
    seeds = ", ".join(map(str, comparison.seeds))
    about = {"name": result.name, "config": config_path, "summary": summary, "seeds": seeds, "cold": result.cold}
    given = f" with {', '.join(f'`{text}`' for text in section.overrides)}" if section.overrides else ""
    some = result.ran[0].runs[0] if result.ran else None
    lines = [DETAILS.format(**about), f"Config {section.config}{given}. {_counts(some)}\n"]
    if some is None:
        return "\n".join(lines)
    lines += methods_table(result)
    missing = [method.name for method in result.methods if not method.runs]
    lines += [f"Missing: {', '.join(missing)}.\n"] if missing else []
    lines += _gains(result, some)
    lines += ["## By frequency\n"]
    for metric in ("hr@10", "ndcg@10"):
        lines += [f"{metric} on test by frequency bin of the target, 1 (most popular) to 10, and by train frequency:\n"]
        lines += frequency_table(result, metric)
    forgetting = forgetting_table(result)
    lines += [FORGETTING, *forgetting] if forgetting else []
    data = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in sorted(result.data_timings.items()))
    lines += [SECONDS.format(data=data or "missing"), *seconds_table(result)]
    return "\n".join([*lines, *_environment(result)])


def _counts(some: RunResult | None) -> str:
    if some is None:
        return "No run is finished."
    about = some.report["dataset"]
    counts = ", ".join(f"{about[name]:,} {name}" for name in ("users", "items", "interactions"))
    return f"{counts}; dataset hash {about['hash'][:12]}."


def _gains(result: DatasetResult, some: RunResult) -> list[str]:
    valid, test = result.best_baseline("valid"), result.best_baseline("test")
    if valid is None or test is None or not result.our_method.runs:
        return [f"## {result.ours} against the others\n\nMissing: no finished runs to compare.\n"]
    targets = some.target_ranks.splits["test"].frequency
    users, cold = f"{len(targets):,}", f"{int((targets <= result.cold).sum()):,}"
    names = {"ours": result.ours, "valid": valid.name, "test": test.name}
    head = GAINS.format(**names, users=users, cold=cold, resamples=RESAMPLES)
    first: dict[str, MethodResult] = {method.name: method for method in (valid, test)}
    rest = [method for method in result.methods if method.name not in (result.ours, *first)]
    others = [*first.values(), *rest]
    anew = {method.name: stages for method in others if (stages := result.trained_anew(method))}
    methods = "; ".join(f"{name} ({', '.join(stages)})" for name, stages in anew.items())
    return [head, *gains_table(result, others), *([ANEW.format(ours=result.ours, methods=methods)] if anew else [])]


def _environment(result: DatasetResult) -> list[str]:
    facts: dict[str, list[str]] = {}
    for run in (run for method in result.methods for run in method.runs):
        for stage in run.report["environment"]["stages"].values():
            _note(facts, stage)
    rows = [[name, "; ".join(values)] for name, values in sorted(facts.items())]
    return ["## Environment\n", "Of every stage; several values where the stages differ.\n", *table(["", ""], rows)]


def _note(facts_by_name: dict[str, list[str]], facts: dict[str, Any], prefix: str = "") -> None:
    for name, value in facts.items():
        if isinstance(value, dict):
            _note(facts_by_name, value, f"{prefix}{name}.")
            continue
        text = value if isinstance(value, str) else json.dumps(value)
        values = facts_by_name.setdefault(prefix + name, [])
        if text not in values:
            values.append(text)
