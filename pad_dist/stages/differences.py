"""What differs between the settings of two runs."""

from __future__ import annotations

from typing import Any


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between two nested dicts, "" if nothing does.

    >>> differences({"seed": 7, "model": {"dim": 64, "heads": 2}}, {"seed": 7, "model": {"dim": 128, "heads": 2}})
    'model.dim: 64 -> 128'
    """
    old, new = flatten(before), flatten(now)
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return ", ".join(f"{key}: {_short(old.get(key))} -> {_short(new.get(key))}" for key in keys)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, its keys joined by dots.

    >>> flatten({"model": {"dim": 64}, "seed": 7})
    {'model.dim': 64, 'seed': 7}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _short(value: Any) -> str:
    """A digest by its first digits."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
