"""What the finished runs of a comparison have left, by data set and method."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pad_dist import storage
from pad_dist.compare.jobs import Job
from pad_dist.errors import UserError
from pad_dist.evaluation.significance import Paired, mean_interval, paired_bootstrap
from pad_dist.evaluation.target_ranks import SplitTargetRanks, TargetRankFile
from pad_dist.stages.fingerprint import evaluation_cache_key
from pad_dist.stages.methods import resolve_stages

METRICS = ("hr@10", "ndcg@10")
Values = NDArray[np.float64]
Slice = Callable[[SplitTargetRanks], NDArray[np.bool_]]
"""Which users a metric is the mean of."""


def everyone(split: SplitTargetRanks) -> NDArray[np.bool_]:
    """All users."""
    return np.ones(len(split.bins), bool)


def seen(low: int, high: int | None) -> Slice:
    """Users whose target has a train frequency from `low` to `high`, or more where there is no `high`."""
    return lambda split: (split.frequency >= low) & (split.frequency <= (np.inf if high is None else high))


def in_bin(number: int) -> Slice:
    """Users whose target is in a frequency bin, 1 to 10."""
    return lambda split: np.asarray(split.bins == number)


@dataclass(frozen=True)
class RunResult:
    """One finished run: every user's target rank by the scorer that the run is for, and what its report says."""

    seed: int
    target_ranks: TargetRankFile
    scorer: str
    report: dict[str, Any]
    timings: dict[str, float]
    stages: dict[str, Any]
    """In their order, with the settings of each, see `Job.settings`."""
    forgetting: dict[str, Any] | None

    def per_user(self, split: str, metric: str) -> Values:
        """[users] values of the metric."""
        users = self.target_ranks.splits[split]
        return users.hits(self.scorer) if metric == "hr@10" else users.gains(self.scorer)


@dataclass(frozen=True)
class MethodResult:
    """A method on a data set: its finished runs, in the order of the seeds."""

    name: str
    role: str
    runs: tuple[RunResult, ...]
    seeds: int
    """How many there are to be."""

    def means(self, split: str, metric: str, part: Slice) -> list[float]:
        """One mean over the users of the slice for each seed; none where it has no user."""
        masks = [part(run.target_ranks.splits[split]) for run in self.runs]
        return [float(r.per_user(split, metric)[m].mean()) for r, m in zip(self.runs, masks, strict=True) if m.any()]

    def of_seeds(self, seeds: Collection[int]) -> MethodResult:
        """The method with its runs of these seeds alone."""
        return replace(self, runs=tuple(run for run in self.runs if run.seed in seeds))

    def every_user(self, split: str, metric: str, part: Slice) -> Values:
        """[seeds, users of the slice]."""
        return np.stack([run.per_user(split, metric)[part(run.target_ranks.splits[split])] for run in self.runs])


@dataclass(frozen=True)
class DatasetResult:
    """All methods on one data set, in the order of the comparison."""

    name: str
    methods: tuple[MethodResult, ...]
    ours: str
    cold: int
    """Targets of at most this train frequency are cold."""
    data_timings: dict[str, float]

    @property
    def ran(self) -> tuple[MethodResult, ...]:
        """Those that have a finished run."""
        return tuple(method for method in self.methods if method.runs)

    @property
    def our_method(self) -> MethodResult:
        """The method that the others are compared with."""
        return next(method for method in self.methods if method.name == self.ours)

    def best_baseline(self, split: str) -> MethodResult | None:
        """The baseline with the highest hr@10 on the split, the first of equals; None where none has a run."""
        baselines = [method for method in self.ran if method.role == "baseline"]
        key = {method.name: float(np.mean(method.means(split, "hr@10", everyone))) for method in baselines}
        return max(baselines, key=lambda method: key[method.name], default=None)

    def against(self, other: MethodResult, metric: str, part: Slice) -> Paired | None:
        """Ours minus another method on test, over the seeds that both ran; None where the slice has no user, or no seed
        is common."""
        seeds = self.common_seeds(other)
        ours, theirs = self.our_method.of_seeds(seeds), other.of_seeds(seeds)
        if not seeds or not part(ours.runs[0].target_ranks.splits["test"]).any():
            return None
        return paired_bootstrap(ours.every_user("test", metric, part), theirs.every_user("test", metric, part))

    def over_seeds(self, other: MethodResult, metric: str, part: Slice) -> tuple[float, float] | None:
        """95 % interval of ours minus another method on test, the seeds that both ran being the unit."""
        ours, theirs = (one.of_seeds(self.common_seeds(other)) for one in (self.our_method, other))
        return mean_interval(np.subtract(ours.means("test", metric, part), theirs.means("test", metric, part)))

    def common_seeds(self, other: MethodResult) -> set[int]:
        """Of which both our method and the other have a finished run."""
        return {run.seed for run in self.our_method.runs} & {run.seed for run in other.runs}

    def trained_anew(self, other: MethodResult) -> list[str]:
        """The stages that our runs have with the same settings, but trained on another machine or by other code."""
        theirs = {run.seed: run for run in other.runs}
        anew: dict[str, None] = {}
        for ours, its in ((run, theirs[run.seed]) for run in self.our_method.runs if run.seed in theirs):
            facts, its_facts = (run.report["environment"]["stages"] for run in (ours, its))
            same: set[str] = set()
            for stage, made in ours.stages.items():
                if its.stages.get(stage) != made or not same.issuperset(made["starts from"]):
                    continue
                same.add(stage)
                if any(facts[stage].get(fact) != its_facts[stage].get(fact) for fact in ("commit", "machine")):
                    anew[stage] = None
        return list(anew)


def read_run(job: Job) -> RunResult:
    """Read the files of a finished run.

    Raises:
        UserError: one is missing or damaged, or the target ranks do not give the metrics beside them.
    """
    out, settings = job.config.out, job.settings()
    last = f"{out}/{[*settings][-1]}"
    evaluation = storage.read_json(f"{last}/evaluation.json")
    target_ranks = TargetRankFile.read(f"{last}/target_ranks.safetensors")
    alone = [name for name in evaluation["scores"] if name not in ("mixture", "popularity")]
    scorer = "mixture" if "mixture" in evaluation["scores"] else alone[0]
    for split, metrics in evaluation["scores"][scorer].items():
        users = target_ranks.splits[split]
        values = {"hr@10": users.hits(scorer).mean(), "ndcg@10": users.gains(scorer).mean()}
        differ = any(abs(values[metric] - metrics[metric]) > 1e-9 for metric in METRICS)
        if differ or target_ranks.cache_key != evaluation["cache_key"]:
            raise UserError(
                f"{last}: target_ranks.safetensors is not of the evaluation.json beside it: evaluate the run again"
            )
    report = storage.read_json(f"{out}/report.json")
    return RunResult(job.seed, target_ranks, scorer, report, report["timings_s"], settings, _forgetting(job))


def _forgetting(job: Job) -> dict[str, Any] | None:
    """What the alignment of the run has made its ID expert forget; None where it has none."""
    for spec in resolve_stages(job.config):
        url = f"{spec.directory}/forgetting.json"
        if spec.aligned_from and storage.exists(url):
            forgetting: dict[str, Any] = storage.read_json(url)
            # Another key is that of an align stage from before.
            return forgetting if forgetting["cache_key"] == evaluation_cache_key(spec) else None
    return None
