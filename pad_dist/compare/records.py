"""Records of finished runs: small text files that the document is written from, kept when the runs are gone."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from pad_dist import storage
from pad_dist.compare.config import DATA, Comparison
from pad_dist.compare.jobs import Job
from pad_dist.compare.results import DatasetResult, MethodResult, RunResult, read_run
from pad_dist.dataset import versions
from pad_dist.dataset.lineage import settings_of
from pad_dist.dataset.reader import Dataset
from pad_dist.errors import UserError
from pad_dist.evaluation.metrics import K
from pad_dist.evaluation.target_ranks import MOST, Ints, SplitTargetRanks, TargetRankFile

Record = dict[str, Any]
"""Of a run, `<results>/<dataset>/<method>/seed-<seed>.json`: the settings, all of a `RunResult`, and `target_ranks`,
by split that of each user, 0 for one beyond 10. Of a data set, `<results>/<dataset>/data.json`: its settings
and content hash, seconds of its steps, and by split each user's target: its bin, and its train frequency up to one
above `cold`. Columns are little-endian int32, one for each user, deflated and in base64."""


def keep_finished(comparison: Comparison, job: Job) -> None:
    """Write the record of a run that is finished and has none.

    Raises:
        UserError: see `read_run`.
    """
    if not is_recorded(comparison, job) and job.finished():
        write_record(comparison, job, read_run(job))


def write_record(comparison: Comparison, job: Job, run: RunResult) -> None:
    """Write the record of a run, and that of its data set."""
    spent = f"{comparison.out}/{job.dataset}/{DATA}/timings.json"
    cold = job.config.evaluation.cold_max_frequency
    targets = {
        split: {"frequency": _text(np.minimum(columns.frequency, cold + 1)), "bins": _text(columns.bins)}
        for split, columns in run.target_ranks.splits.items()
    }
    timings = storage.read_json(spent) if storage.exists(spent) else {}
    data = {
        "settings": _data_settings(job),
        "dataset": run.target_ranks.dataset,
        "timings": timings,
        "targets": targets,
    }
    storage.write_json(_data_url(comparison, job), data)
    target_ranks = {split: columns.by_scorer[run.scorer] for split, columns in run.target_ranks.splits.items()}
    record = {
        "settings": _settings(job),
        "report": {
            "dataset": run.report["dataset"],
            "environment": {"stages": run.report["environment"]["stages"]},
        },
        "scorer": run.scorer,
        "target_ranks": {split: _text(np.where(ranks <= K, ranks, 0)) for split, ranks in target_ranks.items()},
        "timings": run.timings,
        "forgetting": run.forgetting,
    }
    storage.write_json(_url(comparison, job), record)


def is_recorded(comparison: Comparison, job: Job) -> bool:
    """Whether there is a record of a run with these settings; and on these data, where they are built.

    Raises:
        UserError: it is damaged.
    """
    return read_record(comparison, job) is not None


def read_record(comparison: Comparison, job: Job) -> RunResult | None:
    """What the record of a run holds, None where there is none, see `is_recorded`.

    Raises:
        UserError: it is damaged.
    """
    url, data_url = _url(comparison, job), _data_url(comparison, job)
    if not (storage.exists(url) and storage.exists(data_url)):
        return None
    record, data = storage.read_json(url), storage.read_json(data_url)
    try:
        about = record["report"]
        settings = _settings(job)
        made_so = record["settings"] == settings and data["settings"] == _data_settings(job)
        if not (made_so and about["dataset"]["hash"] == data["dataset"] and _built(job) in (None, data["dataset"])):
            return None
        columns = record["target_ranks"].items()
        splits = {split: _split(record["scorer"], data["targets"][split], text) for split, text in columns}
        target_ranks, made = TargetRankFile(splits, "", data["dataset"]), settings["stages"]
        return RunResult(job.seed, target_ranks, record["scorer"], about, record["timings"], made, record["forgetting"])
    except (KeyError, ValueError) as error:
        raise UserError(f"{url} or {data_url} is damaged ({error}): remove it, and do the run again") from None


def collect(comparison: Comparison, jobs: Sequence[Job]) -> list[DatasetResult]:
    """Read all records.

    Raises:
        UserError: one is damaged.
    """
    results = []
    for dataset in comparison.datasets:
        dataset_jobs = [job for job in jobs if job.dataset == dataset]
        runs = [(job.method, run) for job in dataset_jobs if (run := read_record(comparison, job)) is not None]
        methods = []
        for name, section in comparison.methods.items():
            mine = tuple(run for method, run in runs if method == name)
            methods.append(MethodResult(name, section.role, mine, len(comparison.seeds)))
        cold = dataset_jobs[0].config.evaluation.cold_max_frequency
        spent = storage.read_json(_data_url(comparison, dataset_jobs[0]))["timings"] if runs else {}
        results.append(DatasetResult(dataset, tuple(methods), comparison.ours, cold, spent))
    return results


def _settings(job: Job) -> dict[str, Any]:
    """All that a run's result depends on beside its data."""
    return {
        "stages": job.settings(),
        "cold": job.config.evaluation.cold_max_frequency,
        "warm_start": job.config.warm_start,
    }


def _data_settings(job: Job) -> dict[str, Any]:
    """What shapes the data set beside the content of its input files."""
    data = job.config.data
    return {**settings_of(data), "synthetic": data.synthetic and data.synthetic.model_dump(mode="json")}


def _built(job: Job) -> str | None:
    dataset = job.config.dataset
    if versions.root_of(dataset) == dataset and not versions.published(dataset):
        return None
    return Dataset.open(versions.resolve(dataset)).content_hash


def _url(comparison: Comparison, job: Job) -> str:
    return f"{comparison.results}/{job.name}.json"


def _data_url(comparison: Comparison, job: Job) -> str:
    return f"{comparison.results}/{job.dataset}/data.json"


def _split(scorer: str, targets: dict[str, str], text: str) -> SplitTargetRanks:
    recorded, frequency, bins = (_column(column) for column in (text, targets["frequency"], targets["bins"]))
    if not len(recorded) == len(frequency) == len(bins):
        raise ValueError(f"{len(recorded)} target ranks of {len(frequency)} users")
    target_ranks = np.where(recorded > 0, recorded, MOST).astype(np.int32)
    return SplitTargetRanks({scorer: target_ranks}, frequency, bins)


def _text(column: Ints) -> str:
    return base64.b64encode(zlib.compress(column.astype("<i4").tobytes(), 9)).decode()


def _column(text: str) -> Ints:
    try:
        return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i4")
    except zlib.error as error:
        raise ValueError(str(error)) from None
