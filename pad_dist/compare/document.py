"""The document of a comparison, written from the records of its runs: no number in it comes from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pad_dist.compare.config import Comparison, readings_of
from pad_dist.compare.results import DatasetResult, MethodResult, RunResult
from pad_dist.compare.tables import (
    forgetting_table,
    frequency_table,
    gains_table,
    methods_table,
    seconds_table,
    table,
)
from pad_dist.evaluation.significance import RESAMPLES

INTRODUCTION = """\
# Results

Written by the command below from the records in {results}; methods without a finished run are named as missing. A
run that has a record is not done again: remove the record to repeat it. Every target is ranked among the whole
catalogue, leave-one-out or by the data set's own split, earlier items of the user masked, ties counted against the
target. Checkpoints are selected on validation hr@10. Cells are the mean ± standard deviation over the seeds {seeds}.
Cold: the target was seen at most {cold} times in training; popular: more often.

```bash
pad-dist compare --config {config}
```
"""
GAINS = """\
### {ours} against the others

Best baseline by validation hr@10, which stands for all metrics: {valid}; on test hr@10 it is {test}. Paired bootstrap
over the {users} test users, {cold} of them with a cold target: the seeds that both methods ran, averaged per user
first, {resamples:,} resamples, two-sided p. That and the interval over users are of the models as they were trained:
two seeds of one method often differ with p < .05. The interval over seeds, Student's t on their differences, holds the
spread of training instead.
"""
ANEW = """\
Not the very stages of {ours}, but trained anew with the same settings on another machine or by other code, so that the
differences to {ours} hold a spread of training too: {methods}.
"""
FORGETTING = """\
### Forgetting

Test hr@10 of the ID part alone: before alignment; of the frozen original, the same pretrain stage evaluated once more,
which a mixture with `id` in `disentangle.freeze` serves as it is; and of the aligned table without text, with its own
encoder. Change: the last against the first. Tau: Kendall's tau-b between the distances of items before and after, by
frequency bin of the item.
"""
SECONDS = """\
### Seconds

Data: {data}.

By stage, mean over seeds whose time is known; a stage that methods share was trained once, and its time stands at each
of them.
"""


def write_document(comparison: Comparison, config_path: str, results: Sequence[DatasetResult]) -> str:
    """The whole document."""
    seeds = ", ".join(map(str, comparison.seeds))
    cold = " or ".join(dict.fromkeys(str(result.cold) for result in results))
    about = {"results": comparison.results, "config": config_path, "cold": cold, "seeds": seeds}
    lines = [INTRODUCTION.format(**about)]
    if comparison.readings:
        lines.append(readings_of(comparison, config_path))
    lines += _methods(comparison)
    for result in results:
        lines += _dataset(comparison, result)
    lines += _environment(results)
    return "\n".join(lines).rstrip("\n") + "\n"


def _methods(comparison: Comparison) -> list[str]:
    rows = []
    for name, method in comparison.methods.items():
        changes = " ".join(f"`{text}`" for text in method.overrides) or "-"
        rows.append([name, method.role, changes.replace("|", "\\|")])
    return ["## Methods\n", *table(["method", "role", "changes in the data set's config"], rows)]


def _dataset(comparison: Comparison, result: DatasetResult) -> list[str]:
    section = comparison.datasets[result.name]
    given = f" with {', '.join(f'`{text}`' for text in section.overrides)}" if section.overrides else ""
    some = result.ran[0].runs[0] if result.ran else None
    lines = [f"## {result.name}\n", f"Config {section.config}{given}. {_counts(some)}\n"]
    if some is None:
        return lines
    lines += methods_table(result)
    missing = [method.name for method in result.methods if not method.runs]
    lines += [f"Missing: {', '.join(missing)}.\n"] if missing else []
    lines += _gains(result, some)
    for metric in ("hr@10", "ndcg@10"):
        lines += [f"{metric} on test by frequency bin of the target, 1 (most popular) to 10, and by train frequency:\n"]
        lines += frequency_table(result, metric)
    forgetting = forgetting_table(result)
    lines += [FORGETTING, *forgetting] if forgetting else []
    data = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in sorted(result.data_timings.items()))
    return [*lines, SECONDS.format(data=data or "missing"), *seconds_table(result)]


def _counts(some: RunResult | None) -> str:
    if some is None:
        return "No run is finished."
    about = some.report["dataset"]
    counts = ", ".join(f"{about[name]:,} {name}" for name in ("users", "items", "interactions"))
    return f"{counts}; dataset hash {about['hash'][:12]}."


def _gains(result: DatasetResult, some: RunResult) -> list[str]:
    valid, test = result.best_baseline("valid"), result.best_baseline("test")
    if valid is None or test is None or not result.our_method.runs:
        return [f"### {result.ours} against the others\n\nMissing: no finished runs to compare.\n"]
    targets = some.ranks.splits["test"].frequency
    users, cold = f"{len(targets):,}", f"{int((targets <= result.cold).sum()):,}"
    names = {"ours": result.ours, "valid": valid.name, "test": test.name}
    head = GAINS.format(**names, users=users, cold=cold, resamples=RESAMPLES)
    first: dict[str, MethodResult] = {method.name: method for method in (valid, test)}
    rest = [method for method in result.methods if method.name not in (result.ours, *first)]
    others = [*first.values(), *rest]
    anew = {method.name: stages for method in others if (stages := result.trained_anew(method))}
    methods = "; ".join(f"{name} ({', '.join(stages)})" for name, stages in anew.items())
    return [head, *gains_table(result, others), *([ANEW.format(ours=result.ours, methods=methods)] if anew else [])]


def _environment(results: Sequence[DatasetResult]) -> list[str]:
    found: dict[str, list[str]] = {}
    for run in (run for result in results for method in result.methods for run in method.runs):
        for stage in run.report["environment"]["stages"].values():
            _note(found, stage)
    if not found:
        return []
    rows = [[name, "; ".join(values)] for name, values in sorted(found.items())]
    return ["## Environment\n", "Of every stage; several values where the stages differ.\n", *table(["", ""], rows)]


def _note(found: dict[str, list[str]], facts: dict[str, Any], prefix: str = "") -> None:
    for name, value in facts.items():
        if isinstance(value, dict):
            _note(found, value, f"{prefix}{name}.")
            continue
        text = value if isinstance(value, str) else json.dumps(value)
        values = found.setdefault(prefix + name, [])
        if text not in values:
            values.append(text)
