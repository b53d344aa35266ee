"""Where each value of a run config comes from: the YAML file, an override, the method or the default."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from pad_dist.config.keys import set_key
from pad_dist.config.load import load_config, parse_override, read_yaml
from pad_dist.config.methods import PRESETS
from pad_dist.config.run import Config

DEFAULT = "default"
"""Origin of a value that nothing sets, also where the default follows from another key."""
_SECRET_NAME = re.compile("secret|password|token|access[.]?key", re.IGNORECASE)
"""Names of settings whose values Spark hides too (spark.redaction.regex)."""
_SECRET_IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")


@dataclass(frozen=True)
class Resolved:
    """One value of a config.

    Attributes:
        key: whole name, such as `training.loss.negatives`.
        value: the value, with secrets hidden.
        origin: path of the YAML file, "override KEY", "option --out", "method NAME" or DEFAULT.
    """

    key: str
    value: Any
    origin: str


def resolve(path: str, overrides: Sequence[str] = (), out: str | None = None) -> list[Resolved]:
    """Every value of the config that these give, keys of other kinds left out, in the order of the reference.

    Raises:
        UserError: the config is wrong (see `load_config`).
    """
    config = load_config(path, overrides, out)
    given, origins = _given(path, overrides, out, config.method)
    every = []
    for key, value in _values(config):
        if isinstance(value, BaseModel):
            if given.get(key) != {}:
                continue
            value = {}  # a section that is given, but none of its keys
        setters = [origin for name, origin in origins.items() if _is_in(name, key)]
        derived = given.get(key) == "" and value != ""
        origin = DEFAULT if derived else ", ".join(dict.fromkeys(setters)) or DEFAULT
        every.append(Resolved(key, _without_secrets(value), origin))
    return every


def _given(path: str, overrides: Sequence[str], out: str | None, method: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The plain values that are set, by key, and the origin of each: what `load_config` does, step by step."""
    values = read_yaml(path)
    origins = dict.fromkeys(_leaves(values), path)
    changes = [(key, value, f"override {key}") for key, value in map(parse_override, overrides)]
    changes += [("out", out, "option --out")] if out else []
    changes += [(key, value, f"method {method}") for key, value in PRESETS.get(method, {}).items()]
    for changed, value, origin in changes:
        values = set_key(Config, values, changed, value)
        origins = {key: origin if _is_in(key, changed) else origins[key] for key in _leaves(values)}
    return _leaves(values), origins


def _is_in(key: str, section: str) -> bool:
    return f"{key}.".startswith(f"{section}.")


def _leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Plain values by whole key; an empty mapping counts as a value."""
    leaves: dict[str, Any] = {}
    for name, value in values.items():
        inner = isinstance(value, dict) and value
        leaves |= _leaves(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return leaves


def _values(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value below a section, the sections among them before their own values."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        yield f"{prefix}{name}", value
        if isinstance(value, BaseModel):
            yield from _values(value, f"{prefix}{name}.")


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: "***" if _SECRET_NAME.search(name) else _without_secrets(v) for name, v in value.items()}
    return _SECRET_IN_URL.sub("***", value) if isinstance(value, str) else value
