"""The runs of a comparison, each as a `pad-dist run` command, and what of them is done."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from typing import Any

from pad_dist import storage
from pad_dist.compare.config import DATA, Comparison
from pad_dist.config import Config
from pad_dist.config.load import load_config
from pad_dist.dataset import versions
from pad_dist.dataset.text_table import recipe_name
from pad_dist.errors import UserError
from pad_dist.pipeline.steps import Run, Step, data_steps, is_stage, last_steps, model_steps, pinned
from pad_dist.stages.methods import resolve_stages

_PAD_DIST = (sys.executable, "-c", "from pad_dist.cli.main import main; main()")


@dataclass(frozen=True)
class Job:
    """One `pad-dist run`.

    Attributes:
        dataset, method, seed: where it belongs; the job that builds a dataset has the method "data".
        options: arguments beside the config, `out` and the overrides.
        config: what the run makes of them.
    """

    dataset: str
    method: str
    seed: int
    config_path: str
    overrides: tuple[str, ...]
    options: tuple[str, ...]
    config: Config

    @property
    def name(self) -> str:
        """Such as beauty/pad/seed-7."""
        return f"{self.dataset}/{self.method}" + ("" if self.method == DATA else f"/seed-{self.seed}")

    @property
    def log(self) -> str:
        """What the run has said, each start after the one before."""
        return f"{self.config.out}/run.log"

    def arguments(self) -> list[str]:
        """Those of pad-dist."""
        place = ["--config", self.config_path, "--out", self.config.out]
        return ["run", *place, *self.options, *self.overrides]

    def command(self) -> list[str]:
        """What starts it from here."""
        return [*_PAD_DIST, *self.arguments()]

    def line(self) -> str:
        """The same for a reader."""
        return shlex.join(["pad-dist", *self.arguments()])

    def steps(self) -> list[Step]:
        """The steps on the version of the dataset that is current."""
        return model_steps(pinned(Run(self.config, ())), print)

    def finished(self) -> bool:
        """Whether a run with these very settings and data has come to its end."""
        if versions.root_of(self.config.dataset) == self.config.dataset and not versions.published(self.config.dataset):
            return False
        if self.method == DATA:
            steps = [*data_steps(Run(self.config, ())), *last_steps(self.steps(), DATA)]
        else:
            steps = self.steps()
            if not storage.exists(f"{self.config.out}/report.json"):
                return False
        return all(step.is_done() for step in steps)

    def settings(self) -> dict[str, Any]:
        """Of each stage, in their order, those of the texts that it reads, and what it starts from; known without any
        data."""
        return {
            spec.name: {
                **spec.result_settings(),
                "text": text_settings(self.config) if spec.needs_text or spec.rows_from_text else None,
                "starts from": [one.stage.name for one in spec.inherits],
            }
            for spec in resolve_stages(self.config)
        }

    def stages(self) -> dict[str, str]:
        """The fingerprint of each stage, in the order they are trained; the dataset must exist."""
        return {step.name: step.cache_key() for step in self.steps() if is_stage(step.name)}


def text_settings(config: Config) -> dict[str, Any]:
    """What text vectors are made by, and what training makes of them."""
    text = config.text
    return {"vectors": recipe_name(text), "transform": text.transform, "whitening": text.whitening}


def data_jobs(comparison: Comparison) -> list[Job]:
    """What builds the datasets: first that of each data set, then what else a method's texts need.

    Raises:
        UserError: a config is wrong, or a method changes the data or what is called cold.
    """
    jobs = []
    for dataset, section in comparison.datasets.items():
        base = _job(comparison, dataset, DATA, 0, section.overrides)
        built = [base]
        for method, settings in comparison.methods.items():
            candidate = _job(comparison, dataset, DATA, 0, (*section.overrides, *settings.overrides))
            if candidate.config.data != base.config.data:
                raise UserError(
                    f"method {method} changes data.*: its users would not be those of the others; make that another "
                    "data set"
                )
            if candidate.config.evaluation.cold_max_frequency != base.config.evaluation.cold_max_frequency:
                raise UserError(
                    f"method {method} changes evaluation.cold_max_frequency: its cold targets would not be those of "
                    f"the others; set it for the data set {dataset}"
                )
            if recipe_name(candidate.config.text) not in [recipe_name(job.config.text) for job in built]:
                built.append(candidate)
        jobs += built
    return jobs


def run_jobs(comparison: Comparison, datasets: list[Job]) -> list[Job]:
    """A run for each data set, seed and method, in this order; `datasets` are the `data_jobs`.

    A run is on the version of the dataset that is current now, and on the root where there is none yet.
    """
    jobs = []
    for dataset, section in comparison.datasets.items():
        data = next(job.config for job in datasets if job.dataset == dataset)
        for seed in comparison.seeds:
            for method, settings in comparison.methods.items():
                overrides = (*section.overrides, *settings.overrides, *shared_data(data), f"seed={seed}")
                jobs.append(_job(comparison, dataset, method, seed, overrides))
    return jobs


def shared_data(data: Config) -> tuple[str, ...]:
    """Overrides that put a run on another config's dataset: its current version, or its root where none is built."""
    dataset = (f"dataset={json.dumps(versions.resolve(data.dataset))}",)
    if data.data.synthetic is None:
        return dataset
    # Generated inputs are in the directory of the run that made them.
    return (*dataset, *(f"data.{name}={json.dumps(getattr(data.data, name))}" for name in ("interactions", "items")))


def _job(comparison: Comparison, dataset: str, method: str, seed: int, overrides: tuple[str, ...]) -> Job:
    path = comparison.datasets[dataset].config
    overrides = (*overrides, f"training.world_size={comparison.world_size}")
    out = f"{comparison.out}/{dataset}/{method}" + ("" if method == DATA else f"/seed-{seed}")
    options = ("--until", DATA) if method == DATA else ("--reuse", f"{comparison.out}/{dataset}")
    return Job(dataset, method, seed, path, overrides, options, load_config(path, [*overrides], out))
