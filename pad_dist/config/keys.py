"""The keys of a config, read off the classes of its sections, and how a plain value is set by its key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

KIND = "kind"
"""Key of a section that says which of several classes the section is."""


@dataclass(frozen=True)
class Key:
    """One key of a config.

    Attributes:
        name: whole name, such as `training.loss.negatives`.
        field: its type, default and description.
        owner: the class that declares it.
        kind: value of the section's `kind` that the key belongs to; "" where the section has one class.
    """

    name: str
    field: FieldInfo
    owner: type[BaseModel]
    kind: str = ""

    @property
    def sections(self) -> list[type[BaseModel]]:
        """The classes that the value may be, if it is a section."""
        return sections_of(self.field.annotation)


def sections_of(annotation: Any) -> list[type[BaseModel]]:
    """The classes of sections in the annotation of a field."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in sections_of(part)]


def kind_of(section: type[BaseModel]) -> str:
    """The value of `kind` that means this class; "" if it has none."""
    field = section.model_fields.get(KIND)
    return str(get_args(field.annotation)[0]) if field and len(get_args(field.annotation)) == 1 else ""


def walk(root: type[BaseModel], prefix: str = "", kind: str = "") -> Iterator[Key]:
    """Every key below a section, sections before their own keys."""
    for attribute, field in root.model_fields.items():
        key = Key(prefix + (field.alias or attribute), field, root, kind)
        yield key
        several = len(key.sections) > 1
        for section in key.sections:
            yield from walk(section, f"{key.name}.", kind_of(section) if several else "")


def sections_at(root: type[BaseModel], path: Sequence[str]) -> list[type[BaseModel]]:
    """The classes that the section at this place may be; none if there is no such section."""
    sections = [root]
    for name in path:
        fields = [section.model_fields[name] for section in sections if name in section.model_fields]
        sections = [section for field in fields for section in sections_of(field.annotation)]
    return sections


def set_key(root: type[BaseModel], values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Plain values of a config with one key changed; the given ones stay as they are.

    Another `kind` keeps, of the section's keys, those that this kind has too.

    Raises:
        ValueError: a part of the key before its last one is a value, not a section.
    """
    return _set(root, values, [], key.split("."), value)


def _set(
    root: type[BaseModel], values: dict[str, Any], path: list[str], names: list[str], value: Any
) -> dict[str, Any]:
    name, *rest = names
    if not rest:
        return (_of_kind(root, values, path, value) if name == KIND else values) | {name: value}
    inner = values.get(name) or {}
    if isinstance(inner, BaseModel):
        inner = inner.model_dump(exclude_unset=True)
    if not isinstance(inner, dict):
        raise ValueError(f"{'.'.join([*path, name])} is a value, not a section")
    return values | {name: _set(root, inner, [*path, name], rest, value)}


def _of_kind(root: type[BaseModel], values: dict[str, Any], path: list[str], kind: Any) -> dict[str, Any]:
    fields = [set(section.model_fields) for section in sections_at(root, path) if kind_of(section) == kind]
    return {name: given for name, given in values.items() if not fields or name in fields[0]}
