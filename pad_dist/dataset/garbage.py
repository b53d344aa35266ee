"""What a dataset no longer needs: old versions, directories of builds that died, text vectors of no version."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pad_dist import storage
from pad_dist.dataset import versions
from pad_dist.errors import UserError


@dataclass(frozen=True)
class Garbage:
    """What `collect` removes.

    Attributes:
        retired: published versions.
        abandoned: versions that were never published and never will be.
        files: paths under <root>/text/, relative to the root.
        recipes: text recipes that only retired versions have; embedding with them starts anew.
        bytes: total size.
    """

    retired: list[str]
    abandoned: list[str]
    files: list[str]
    recipes: list[str]
    bytes: int


def find_garbage(root: str, keep: int, grace_hours: float) -> Garbage:
    """What to remove so that the newest `keep` versions stay; removes nothing itself.

    A text file stays if the text manifest of a staying version (or of one being built)
    names it, or if it is younger than `grace_hours`: an embedding job lists its files
    only when all are written.

    Raises:
        UserError: no dataset at `root`; `keep` is below 1; or a text manifest is damaged.
    """
    versions.find(root)
    if keep < 1:
        raise UserError(f"--keep {keep}: at least the current version stays, give 1 or more")
    retired, abandoned = versions.published(root)[:-keep], versions.abandoned(root)
    going = {*retired, *abandoned}
    staying = [version for version in versions.present(root) if version not in going]
    recipes = {recipe for version in retired for recipe in text_recipes(root, version)}
    recipes.difference_update(recipe for version in staying for recipe in text_recipes(root, version))
    files, sizes = _stale_text(root, staying, grace_hours)
    total = sum(sizes) + sum(size_of(versions.version_url(root, version)) for version in going)
    return Garbage(retired, abandoned, files, sorted(recipes), total)


def collect(root: str, garbage: Garbage) -> None:
    """Remove the garbage; if this is killed halfway, the next `find_garbage` returns the rest.

    Raises:
        UserError: see `versions.retire`.
    """
    versions.retire(root, garbage.retired)
    for version in garbage.abandoned:
        storage.remove(versions.version_url(root, version))
    for path in garbage.files:
        storage.remove(storage.join(root, path))


def text_recipes(root: str, version: str) -> list[str]:
    """Names of the text manifests of a version: what its texts were embedded with."""
    return [_name(path).removesuffix(".json") for path in _text_manifests(root, version)]


def size_of(url: str) -> int:
    """Bytes of all files under a directory."""
    fs, path = storage.filesystem(url)
    return int(fs.du(path)) if fs.exists(path) else 0


def _stale_text(root: str, staying: list[str], grace_hours: float) -> tuple[list[str], list[int]]:
    """Paths relative to the root and sizes of text files that no version in `staying` names."""
    named: set[str] = set()
    for version in staying:
        for manifest in _text_manifests(root, version):
            named.update(
                _strings(storage.read_json(storage.join(versions.version_url(root, version), "text", manifest)))
            )
    fs, folder = storage.filesystem(storage.join(root, "text"))
    infos = fs.find(folder, detail=True)
    files, sizes = [], []
    for path in sorted(infos):
        relative = "text/" + path.removeprefix(folder).lstrip("/")
        age = datetime.now(UTC) - fs.modified(path)
        if relative not in named and age.total_seconds() > 3600 * grace_hours:
            files.append(relative)
            sizes.append(int(infos[path]["size"]))
    return files, sizes


def _text_manifests(root: str, version: str) -> list[str]:
    fs, folder = storage.filesystem(storage.join(versions.version_url(root, version), "text"))
    return sorted(_name(path) for path in fs.glob(f"{folder}/*.json"))


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _strings(value: Any) -> Iterator[str]:
    """Every string inside JSON: a file is in use if any entry or parameter names it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)
