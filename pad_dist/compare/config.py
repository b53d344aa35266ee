"""What a comparison is made of: data sets, methods and seeds; one run for each of their combinations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pad_dist.config import Section
from pad_dist.config.load import parse_section, read_yaml
from pad_dist.errors import UserError

Name = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
"""Names a directory."""
DATA = "data"
"""Directory beside the methods' where a dataset is built."""


class DatasetSection(Section):
    """One data set."""

    config: str
    """Path of the run YAML that all methods start from."""
    overrides: tuple[str, ...] = ()
    """`section.key=value`, such as data.interactions=PATH."""


class MethodSection(Section):
    """One method: what it changes in every run config."""

    role: Literal["ours", "baseline", "ablation"] = "baseline"
    """`ours`: the one that all others are compared with; `ablation`: a part of it, no candidate for the best
    baseline."""
    overrides: tuple[str, ...] = ()
    """`section.key=value`; they come after the data set's."""


class Comparison(Section):
    """Everything a comparison needs."""

    out: str = Field(min_length=1)
    """Runs are in <out>/<dataset>/<method>/seed-<seed>."""
    results: str = Field("docs/results", min_length=1)
    """Where the record of every finished run is kept. A run with a record is not done again."""
    report: str = "docs/RESULTS.md"
    """Where the summary goes; a page for each data set goes to `results`."""
    findings: str = ""
    """A Markdown file that becomes part of the summary, word for word."""
    datasets: dict[Name, DatasetSection] = Field(min_length=1)
    methods: dict[Name, MethodSection] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(min_length=1)
    world_size: int = Field(1, ge=1)
    """Ranks of each run."""
    processes: int = Field(1, ge=1)
    """Runs at a time."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        ours = [name for name, method in self.methods.items() if method.role == "ours"]
        if len(ours) != 1:
            raise ValueError(f"{len(ours)} methods have role=ours: mark exactly one")
        if "methods" in self.datasets:
            raise ValueError("no data set can be named methods: the page of the methods has that name")
        if DATA in self.methods:
            raise ValueError(f"no method can be named {DATA}: that directory is the data set's")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={list(self.seeds)} names one twice")
        return self

    @property
    def ours(self) -> str:
        """The method that all others are compared with."""
        return next(name for name, method in self.methods.items() if method.role == "ours")


def load_comparison(path: str) -> Comparison:
    """Read a comparison's YAML.

    Raises:
        UserError: missing file, bad YAML, unknown key, a value of the wrong type, or findings that are no file of text.
    """
    comparison = parse_section(Comparison, read_yaml(path), path)
    if comparison.findings:
        findings_of(comparison, path)
    return comparison


def findings_of(comparison: Comparison, path: str) -> str:
    """The text of the findings.

    Raises:
        UserError: they are no file of text.
    """
    if not Path(comparison.findings).is_file():
        raise UserError(f"{path}: findings={comparison.findings} does not exist")
    try:
        return Path(comparison.findings).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: findings={comparison.findings} is no text in UTF-8: {error}") from None
