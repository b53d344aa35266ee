"""The reference of all config keys, read off the sections: types in words, defaults and descriptions."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pad_dist.config.keys import KIND, Key, walk
from pad_dist.config.methods import PRESETS
from pad_dist.config.run import Config
from pad_dist.errors import UserError

REQUIRED = "required"
"""Stands in place of a default where there is none."""
_PLAIN = {bool: "true or false", int: "integer", float: "number", str: "text"}
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}

EXAMPLE_ERROR = "override model.dmi=3: unknown key model.dmi; did you mean model.dim?"
"""What a misspelt key reads like; docs/config.md shows it."""

_INTRODUCTION = f"""# Config reference

Every key of a run config: its type, its default and its meaning. The command
`pad-dist config keys --markdown > docs/config.md` writes this file from the code; do not edit it by hand.

## How a config is read

A run config is a YAML file. Keys are grouped in sections, and sections may have sections. `name` is the only key that
every config must set.

```yaml
# small.yaml
name: small
model: {{dim: 32, backbone: {{kind: gru4rec, layers: 2}}}}
training: {{batch_size: 64}}
```

Commands take the file and any number of overrides, `section.key=value`:

```bash
pad-dist run --config small.yaml training.batch_size=128 'disentangle.experts=[id, text]'
pad-dist config show --config small.yaml --changed training.batch_size=128
pad-dist config keys training.loss
```

The first command runs with two values changed. The second one prints the resolved values and where each comes from;
`--changed` leaves out the defaults. The third one lists keys as this document does. A value comes from the first of
these that sets it:

1. the method: some values of `method` set keys of their own, whatever the rest says (table below);
2. the option `--out`, which sets `out`;
3. the overrides; of two that set the same key, the later one counts;
4. the YAML file;
5. the default.

The value of an override is YAML: `null`, `true`, `3`, `[a, b]` or `{{key: value}}`. A whole section may be given as a
mapping, which replaces what was set in that section before. Quote lists and mappings for the shell.

## Kinds

Some sections come in several kinds, with different keys: `model.backbone`, `training.loss` and `align.alignment`. The
key `kind` names the kind. The column "kind" of a table says which kinds have a key; a config that sets it with another
kind is refused. An override of `kind` keeps the keys that the old and the new kind have in common and drops the rest.

## Errors

A config is checked before anything starts. Mistakes are told in one line on stderr, which names the file or the
override that is wrong, the key and the nearest valid one. The exit status is 2:

```text
pad-dist: error: {EXAMPLE_ERROR}
```
"""


@dataclass(frozen=True)
class Entry:
    """One key as a user sees it.

    Attributes:
        name: whole name, such as `training.loss.negatives`.
        kinds: the kinds of its section that have the key; empty where the section has no kinds, and of `kind` itself.
        type: what the key takes, in words.
        default: the default as YAML, or REQUIRED.
        description: what the value means.
    """

    name: str
    kinds: tuple[str, ...]
    type: str
    default: str
    description: str


@dataclass(frozen=True)
class Group:
    """A section and its own keys; those of the sections in it have groups of their own.

    Attributes:
        name: whole name of the section; empty for the keys outside all sections.
        description: what the section is about.
        entries: its keys, in the order in which they are declared.
    """

    name: str
    description: str
    entries: tuple[Entry, ...]


def groups() -> list[Group]:
    """Every section of a run config, each before the sections in it."""
    sections: dict[str, tuple[str, Any, list[Key]]] = {"": ("Keys outside all sections.", None, [])}
    for key in walk(Config):
        if key.sections:
            sections.setdefault(key.name, (_description(key), key.field.default, []))
        if not key.sections or NoneType in _members(key.field.annotation):
            sections[key.name.rpartition(".")[0]][2].append(key)
    return [Group(name, text, tuple(_entries(keys, default))) for name, (text, default, keys) in sections.items()]


def select(name: str) -> list[Group]:
    """The groups of one section and of all sections in it, or one key in its group; everything for "".

    Raises:
        UserError: no such section or key; names the nearest one.
    """
    every = groups()
    chosen = [group for group in every if not name or f"{group.name}.".startswith(f"{name}.")]
    if not chosen:
        of_key = ((group, tuple(entry for entry in group.entries if entry.name == name)) for group in every)
        chosen = [replace(group, entries=entries) for group, entries in of_key if entries]
    if chosen:
        return chosen
    sections = [group.name for group in every if group.name]
    names = [*sections, *(entry.name for group in every for entry in group.entries)]
    near = [known for known in names if known.rpartition(".")[2] == name] or difflib.get_close_matches(name, names, n=1)
    top = ", ".join(section for section in sections if "." not in section)
    raise UserError(f"unknown section {name}; " + (f"did you mean {near[0]}?" if near else f"the sections are {top}"))


def markdown() -> str:
    """The whole reference as a Markdown document, docs/config.md."""
    lines = [_INTRODUCTION, "## Keys that a method sets", "", "Other methods set none.", ""]
    lines += _table(("method", "sets"), [(f"`{method}`", _assignments(keys)) for method, keys in PRESETS.items()])
    for group in groups():
        title = f"`{group.name}`" if group.name else "Keys outside sections"
        lines += ["", f"##{'#' * group.name.count('.')} {title}", ""]
        lines += [group.description, ""] if group.name else []
        header, rows = table_of(group)
        code = {header.index(column) for column in ("key", "default")}
        lines += _table(
            header,
            [
                tuple(f"`{cell}`" if place in code and cell != REQUIRED else cell for place, cell in enumerate(row))
                for row in rows
            ],
        )
    return "\n".join(lines) + "\n"


def table_of(group: Group) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of a group's table; it has a column of kinds only if its section has kinds."""
    has_kinds = any(entry.kinds for entry in group.entries)
    header = ("key", *(("kind",) if has_kinds else ()), "type", "default", "description")
    rows: list[tuple[str, ...]] = [
        (entry.name, *((", ".join(entry.kinds),) if has_kinds else ()), entry.type, entry.default, entry.description)
        for entry in group.entries
    ]
    return header, rows


def as_yaml(value: Any) -> str:
    """A value in one line of YAML, as an override takes it."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=float("inf"))
    return text.removesuffix("...\n").rstrip("\n")


def type_in_words(field: FieldInfo) -> str:
    """What a key takes, from its annotation and bounds: "integer, at least 1", "one of pre, post" and the like."""
    members = _members(field.annotation)
    choices = [str(choice) for member in members if get_origin(member) is Literal for choice in get_args(member)]
    texts = [f"one of {', '.join(choices)}"] if choices else []
    texts += list(dict.fromkeys(_in_words(member) for member in members if _in_words(member)))
    bounds = []
    for limit in field.metadata:
        bounds += [f"{words} {getattr(limit, name)}" for name, words in _BOUNDS.items() if hasattr(limit, name)]
        if hasattr(limit, "min_length"):
            bounds.append("not empty" if limit.min_length == 1 else f"at least {limit.min_length} of them")
    every = " or ".join(texts) + (f", {' and '.join(bounds)}" if bounds else "")
    return every + (", or null" if NoneType in members else "")


def _members(annotation: Any) -> list[Any]:
    """The types that a union consists of; one type is a union of itself."""
    if get_origin(annotation) in (Union, UnionType):
        return [member for part in get_args(annotation) for member in _members(part)]
    return [annotation]


def _in_words(member: Any) -> str:
    """One type; "" for null and for choices, which are put together."""
    if member is NoneType or get_origin(member) is Literal:
        return ""
    if get_origin(member) is dict:
        return f"mapping of {' to '.join(map(_in_words, get_args(member)))}"
    if get_origin(member) is tuple:
        inner = get_args(member)[0]
        choices = get_args(inner) if get_origin(inner) is Literal else ()
        return f"list of {', '.join(choices)}" if choices else f"list of {_in_words(inner)}"
    return "section" if issubclass(member, BaseModel) else _PLAIN[member]


def _entries(keys: list[Key], section_default: Any) -> Iterator[Entry]:
    """The keys of one section, each once: those that several kinds declare alike are one entry."""
    merged: dict[Entry, tuple[str, ...]] = {}
    for key in keys:
        entry = Entry(key.name, (), type_in_words(key.field), _default(key.field), _description(key))
        merged[entry] = (*merged.get(entry, ()), *([key.kind] if key.kind else []))
    of_kinds = [entry for entry, kinds in merged.items() if kinds and _is_kind(entry.name)]
    if of_kinds:
        choices = [kind for entry in of_kinds for kind in merged[entry]]
        text = " ".join(f"`{kind}`: {entry.description}" for kind, entry in zip(choices, of_kinds, strict=True))
        yield Entry(of_kinds[0].name, (), f"one of {', '.join(choices)}", getattr(section_default, KIND), text)
    for entry, kinds in merged.items():
        if entry not in of_kinds:
            yield replace(entry, kinds=kinds)


def _is_kind(name: str) -> bool:
    return name.rpartition(".")[2] == KIND


def _default(field: FieldInfo) -> str:
    return REQUIRED if field.is_required() else as_yaml(field.get_default(call_default_factory=True))


def _description(key: Key) -> str:
    return " ".join((key.field.description or "").split())


def _assignments(keys: dict[str, Any]) -> str:
    return ", ".join(f"`{key}={as_yaml(value)}`" for key, value in keys.items())


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = [header, ("---",) * len(header), *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines]
