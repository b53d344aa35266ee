"""What a rerun reads: the new files alone, or everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pad_dist.dataset.manifest import Manifest
from pad_dist.errors import UserError

_VIEW = {"min_interactions", "max_history", "keep_last", "split", "items_format"}
"""Settings that change sequences and items, but not the events."""
_VIEW_COLUMNS = {"item_key", "text"}


@dataclass(frozen=True)
class Rerun:
    """What a build does.

    Attributes:
        grow: whether it starts from the previous version's events.
        events: event files to read.
        catalogue: catalogue files to read; none if they have not changed since the previous version.
        why: message to the user about the decision.
    """

    grow: bool
    events: list[str]
    catalogue: list[str]
    why: str


def plan(before: Manifest | None, version: str | None, now: dict[str, Any], incremental: bool) -> Rerun | None:
    """Compare the inputs of the previous version with those of now; None if nothing changed.

    Events of files that are gone stay in the dataset as long as the build starts from
    the previous version's events.

    Args:
        now: of `lineage.lineage_of`.

    Raises:
        UserError: the inputs belong to another dataset; or everything must be read again
            and a file of the previous version is gone.
    """
    inputs, settings = now["inputs"], now["settings"]
    events, catalogue = list(inputs["interactions"]), list(inputs["items"])
    if before is None:
        return Rerun(False, events, catalogue, "a first build: reads every input")
    then = before.lineage
    read: dict[str, str] = then["inputs"]["interactions"]
    url, old_url = now["urls"]["interactions"], then["urls"]["interactions"]
    if url != old_url and not read.keys() & inputs["interactions"].keys():
        raise UserError(
            f"data.interactions={url} shares no file with {old_url}, which version {version} of this dataset was made "
            "from: set dataset to another directory, or data.interactions to a pattern that covers old and new files"
        )
    gone = [file for file in read if file not in inputs["interactions"]]
    changed = [file for file in read if inputs["interactions"].get(file, read[file]) != read[file]]
    if incremental and not (gone or changed) and (then["inputs"], then["settings"]) == (inputs, settings):
        return None

    reason = _reason_to_start_over(then["settings"], settings, changed)
    if incremental and reason is None:
        new = [file for file in events if file not in read]
        same_catalogue = (then["inputs"]["items"], _of_catalogue(then["settings"])) == (
            inputs["items"],
            _of_catalogue(settings),
        )
        if gone and not new and same_catalogue and _rest(then) == _rest(now):
            return None
        stay = f"; {len(gone)} event files are gone from the input, their events stay" if gone else ""
        why = f"grows from version {version}: {len(new)} new of {len(events)} event files{stay}"
        return Rerun(True, new, [] if same_catalogue else catalogue, why)
    if incremental and gone:
        raise UserError(
            f"{reason}, so every input must be read again, but {gone[0]} ({len(gone)} files in all), which version "
            f"{version} holds, is gone: put it back, or set data.incremental=false to build from what is there"
        )
    reason = reason or "data.incremental=false"
    return Rerun(False, events, catalogue, f"reads every input, since {reason}; items of version {version} keep places")


def _reason_to_start_over(then: dict[str, Any], now: dict[str, Any], changed: list[str]) -> str | None:
    """Why the build cannot start from the previous version's events; None if it can."""
    if changed:
        return f"{changed[0]} has changed"
    if now["min_item_interactions"] or then["min_item_interactions"]:
        return "one new event may bring back items and users that data.min_item_interactions left out"
    for name in sorted({*then, *now} - _VIEW):
        if name == "columns":
            if any(then[name].get(c) != v for c, v in now[name].items() if c not in _VIEW_COLUMNS):
                return "data.columns has changed"
        elif then.get(name) != now.get(name):
            return f"data.{name} has changed"
    return None


def _of_catalogue(settings: dict[str, Any]) -> Any:
    return settings.get("items_format"), [settings["columns"][name] for name in sorted(_VIEW_COLUMNS)]


def _rest(lineage: dict[str, Any]) -> Any:
    return lineage["settings"], [lineage["inputs"][name] for name in ("items", "erase_users", "erase_items")]
