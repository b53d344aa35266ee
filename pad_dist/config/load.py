"""A run config from a YAML file and `section.key=value` overrides."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from pad_dist.config.keys import KIND, kind_of, sections_at, set_key, walk
from pad_dist.config.run import Config
from pad_dist.errors import UserError

Model = TypeVar("Model", bound=BaseModel)


def load_config(path: str, overrides: Sequence[str] = (), out: str | None = None) -> Config:
    """Read a YAML run config and apply `section.key=value` overrides.

    Raises:
        UserError: missing file, bad YAML, unknown key (with the nearest valid one) or a value of the wrong type. An
            error in a key that an override has set names the override instead of the file.
    """
    return parse_config(config_values(path, overrides, out), path, overrides)


def config_values(path: str, overrides: Sequence[str] = (), out: str | None = None) -> dict[str, Any]:
    """The plain values of a YAML file with the overrides applied, before they are checked.

    Raises:
        UserError: missing file, bad YAML, or an override that is none.
    """
    values = read_yaml(path)
    for override in overrides:
        key, value = parse_override(override)
        try:
            values = set_key(Config, values, key, value)
        except ValueError as error:
            raise UserError(f"override {override}: {error}") from None
    return values | ({"out": out} if out else {})


def read_yaml(path: str) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        UserError: missing file, bad YAML, or something else than a mapping.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"config file {path} does not exist")
    try:
        values = yaml.safe_load(file.read_bytes()) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a mapping of sections, not {type(values).__name__}")
    return values


def config_from_arguments(description: str, arguments: list[str] | None = None) -> tuple[Config, str]:
    """The config that a script's command line names, and the path of its YAML file.

    Every script that is not the pad-dist command takes the same: --config, --out and overrides.

    Raises:
        UserError: see `load_config`.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", required=True, help="run YAML")
    parser.add_argument("--out", help="directory of the run; default: the config's")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    given = parser.parse_args(arguments)
    return load_config(given.config, given.overrides, given.out), given.config


def parse_config(values: dict[str, Any], source: str, overrides: Sequence[str] = ()) -> Config:
    """Check the plain values of a run config; `source` names them in errors, or one of the `overrides` within them."""
    return parse_section(Config, values, source, overrides)


def parse_section(section: type[Model], values: dict[str, Any], source: str, overrides: Sequence[str] = ()) -> Model:
    """Check plain values; `source` names them in errors, or one of the `overrides` within them.

    Raises:
        UserError: an unknown key (with the nearest valid one) or a value of the wrong type.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        by_source: dict[str, list[str]] = {}
        for one in error.errors():
            path = _without_tags(section, one["loc"]) + ([KIND] if one["type"] == "union_tag_invalid" else [])
            text = _explain(one, path, section)
            by_source.setdefault(_blamed(one, ".".join(path), text, source, overrides), []).append(text)
        raise UserError("; ".join(f"{where}: {'; '.join(texts)}" for where, texts in by_source.items())) from None


def parse_override(override: str) -> tuple[str, Any]:
    """Key and value of `section.key=value`.

    Raises:
        UserError: it has another form.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {override!r} is not of the form section.key=value")
    try:
        return key, yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"override {override!r}: {text!r} is not a YAML value") from None


def _blamed(error: Any, key: str, text: str, source: str, overrides: Sequence[str]) -> str:
    """The override that has set a key, a section around it or a key below it; else the file.

    Keys that do not fit one another are an error of their section: of the override of one that the error names.
    """
    for override in reversed(overrides):
        changed = override.partition("=")[0]
        inner = changed.removeprefix(f"{key}.")
        is_below = inner != changed
        is_wrong = is_below
        if error["type"] == "value_error":
            is_wrong = _names(text, changed) or (is_below and _names(text, inner))
        if is_wrong or f"{key}.".startswith(f"{changed}."):
            return f"override {override}"
    return source


def _names(text: str, key: str) -> bool:
    """Whether an error names a key; one without a dot might be a mere word of it."""
    after = r"(?!\w)" if "." in key else r"(?=[=.:,])"
    return re.search(rf"(?<![\w.-]){re.escape(key)}{after}", text) is not None


def _without_tags(section: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """The names of an error's location, without the kinds that pydantic puts between them."""
    path: list[str] = []
    for step in map(str, location):
        sections = sections_at(section, path)
        is_tag = len(sections) > 1 and step in map(kind_of, sections) and path[-1:] != [KIND]
        path += [] if is_tag else [step]
    return path


def _explain(error: Any, path: list[str], section: type[BaseModel]) -> str:
    name = ".".join(path)
    if error["type"] == "extra_forbidden":
        return _nearest(name, path, section, str(error["loc"][-2]) if len(error["loc"]) > 1 else "")
    if error["type"] == "union_tag_invalid":
        return f"{name}={error['ctx']['tag']} is none of {error['ctx']['expected_tags']}"
    if error["type"] in ("model_attributes_type", "model_type") and not isinstance(error["input"], dict):
        has_kinds = len(sections_at(section, path)) > 1 and isinstance(error["input"], str)
        hint = f"; set {name}.kind={error['input']}" if has_kinds else ""
        return f"{name} is a section, not a value{hint}"
    if name == "training.precision" and error["input"] == "fp16":
        return f"{name}=fp16 is refused: its loss scaling reaches the fused sparse optimizers; use bf16 or fp32"
    message = error["msg"].removeprefix("Value error, ")
    return f"{name}: {message}" if name else message


def _nearest(name: str, path: list[str], section: type[BaseModel], tag: str) -> str:
    *sections, leaf = path
    kinds = [kind for kind in sections_at(section, sections) if kind_of(kind) and leaf in kind.model_fields]
    if kinds:  # a key of another kind
        of = " or ".join(kind_of(kind) for kind in kinds)
        return f"{name} belongs to kind {of}, not {tag}"
    known = [key.name for key in walk(section)]
    siblings = [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == ".".join(sections)]
    # A slip of the pen in the right section, else the right word in the wrong section, else what looks alike.
    hints = (
        [".".join([*sections, near]) for near in difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.6)]
        or [key for key in known if key.rpartition(".")[2] == leaf]
        or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    )
    return f"unknown key {name}" + (f"; did you mean {hints[0]}?" if hints else "")
