"""A run config from a YAML file and `section.key=value` overrides."""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from pad_dist.config import Config
from pad_dist.errors import UserError

Kind = TypeVar("Kind", bound=BaseModel)


def load_config(path: str, overrides: list[str] | None = None, out: str | None = None) -> Config:
    """Read a YAML run config and apply `section.key=value` overrides.

    Raises:
        UserError: missing file, bad YAML, unknown key (with the nearest valid
            one) or a value of the wrong type.
    """
    values = read_yaml(path)
    for override in overrides or []:
        _apply(values, override)
    if out:
        values["out"] = out
    return parse_config(values, path)


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


def parse_config(values: dict[str, Any], source: str) -> Config:
    """Validate the plain values of a run config; `source` names them in errors."""
    return parse_section(Config, values, source)


def parse_section(kind: type[Kind], values: dict[str, Any], source: str) -> Kind:
    """Validate plain values; `source` names them in errors.

    Raises:
        UserError: an unknown key (with the nearest valid one) or a value of the wrong type.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{source}: " + "; ".join(_explain(e, kind) for e in error.errors())) from None


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {override!r} is not of the form section.key=value")
    *sections, leaf = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UserError(f"override {override!r}: {section} is a value, not a section")
    try:
        values[leaf] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"override {override!r}: {text!r} is not a YAML value") from None


def _explain(error: Any, kind: type[BaseModel]) -> str:
    location = [str(part) for part in error["loc"]]
    name = ".".join(location)
    if error["type"] == "extra_forbidden":
        return _nearest(name, location, kind)
    if name == "training.gradient_accumulation":
        return (
            f"{name}={error['input']}: only 1 is possible, the sparse tables step in every backward; "
            "raise training.batch_size instead"
        )
    if name == "training.precision" and error["input"] == "fp16":
        return f"{name}=fp16 is refused: its loss scaling reaches the fused sparse optimizers; use bf16 or fp32"
    message = error["msg"].removeprefix("Value error, ")
    return f"{name}: {message}" if name else message


def _nearest(name: str, location: list[str], kind: type[BaseModel]) -> str:
    known = _keys(kind)
    *sections, leaf = location
    siblings = [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == ".".join(sections)]
    # A slip of the pen in the right section, else the right word in the wrong section, else what looks alike.
    hints = (
        [".".join([*sections, near]) for near in difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.6)]
        or [key for key in known if key.rpartition(".")[2] == leaf]
        or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    )
    return f"unknown key {name}" + (f"; did you mean {hints[0]}?" if hints else "")


def _keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for attribute, field in section.model_fields.items():
        name = field.alias or attribute
        keys.append(prefix + name)
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys += _keys(kind, f"{prefix}{name}.")
    return keys
