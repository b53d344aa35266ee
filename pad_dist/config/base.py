"""What every section of a run config has in common."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Section(BaseModel):
    """Base of every section: immutable, no unknown keys, each key described by the text below it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    execution_keys: ClassVar[frozenset[str]] = frozenset()
    """Keys that say where and how something runs, and do not change its result."""

    def result_settings(self) -> dict[str, Any]:
        """The other keys, as JSON values."""
        return self.model_dump(mode="json", exclude=set(self.execution_keys))


def default_kind(kind: str) -> BeforeValidator:
    """Take a section that names no `kind` as one of this kind."""

    def fill(values: Any) -> Any:
        return {"kind": kind, **values} if isinstance(values, dict) else values

    return BeforeValidator(fill)
