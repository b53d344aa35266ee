"""Versions of a dataset: immutable directories, and one pointer file that lists the published ones.

    <root>/versions.json               ids of the published versions, oldest first; the last is current
    <root>/versions/<id>/              one version: manifest.json and the files that it lists
    <root>/text/                       text vectors, shared by versions

A build fills a new directory and publishes it by one atomic write of the pointer.
A reader sees the old version or the new one, and keeps the files of the version that
it opened. A directory that the pointer does not name was never published.
"""

from __future__ import annotations

import re
import secrets

from pad_dist import storage
from pad_dist.errors import UserError

_POINTER = "versions.json"
_FOLDER = "versions"


def published(root: str) -> list[str]:
    """Ids of the published versions, oldest first; none if the dataset does not exist."""
    url = storage.join(root, _POINTER)
    return list(storage.read_json(url)["versions"]) if storage.exists(url) else []


def current(root: str) -> str | None:
    """Id of the version that a new reader opens."""
    known = published(root)
    return known[-1] if known else None


def find(root: str, name: str | None = None) -> str:
    """Id of the published version that `name` means: its number, id or prefix of the id; for None the current one.

    Raises:
        UserError: no dataset at `root`, no such version, or several that `name` may mean.
    """
    known = published(root)
    if not known:
        dataset = root_of(root)
        is_version = dataset != root
        hint = f"{root} is one version of {dataset}: give that" if is_version else "build it first, or check the path"
        raise UserError(f"{root} holds no {_POINTER}, so no dataset is there: {hint}")
    if name is None:
        return known[-1]
    numbered = [version for version in known if name.isdecimal() and number(version) == int(name)]
    matches = numbered or [version for version in known if version.startswith(name)]
    if len(matches) != 1:
        problem = f"may mean {len(matches)} versions" if matches else "is no published version"
        raise UserError(f"{root}: {name!r} {problem}; there are {', '.join(known)}: give one of them or its number")
    return matches[0]


def version_url(root: str, version: str) -> str:
    """Directory of a version."""
    return storage.join(root, f"{_FOLDER}/{version}")


def number(version: str) -> int:
    """The running number that an id begins with."""
    return int(version.partition("-")[0])


def resolve(url: str) -> str:
    """Directory to read for `url`: the current version of a dataset, or `url` itself where it names one version."""
    version = current(url)
    return url if version is None else version_url(url, version)


def root_of(url: str) -> str:
    """The dataset that a version's directory belongs to."""
    parent, _, _ = url.rstrip("/").rpartition("/")
    return parent.removesuffix(f"/{_FOLDER}") if parent.endswith(f"/{_FOLDER}") else url


def next_id(root: str) -> str:
    """Id for a build that starts now: the next number, and random digits that no other build has."""
    return f"{max([0, *map(number, present(root))]) + 1:06d}-{secrets.token_hex(4)}"


def publish(root: str, version: str, grown_from: str | None) -> None:
    """Make a complete version the current one, then delete older directories that were never published.

    Raises:
        UserError: another build has published since this one began from `grown_from`.
    """
    before = published(root)
    newest = before[-1] if before else None
    if newest != grown_from:
        raise UserError(
            f"{root}: version {newest} was published while this build grew from {grown_from}: "
            "run it again, and one build of a dataset at a time"
        )
    storage.write_json(storage.join(root, _POINTER), {"versions": [*before, version]})
    for other in abandoned(root):
        storage.remove(version_url(root, other))


def abandoned(root: str) -> list[str]:
    """Directories older than the current version that were never published, or retired but not yet deleted."""
    known = published(root)
    return [v for v in present(root) if known and v not in known and number(v) < number(known[-1])]


def retire(root: str, versions: list[str]) -> None:
    """Unpublish versions and delete their directories.

    Raises:
        UserError: the current version is among them.
    """
    before = published(root)
    if before and before[-1] in versions:
        raise UserError(f"{root}: version {before[-1]} is the current one and stays")
    storage.write_json(storage.join(root, _POINTER), {"versions": [v for v in before if v not in versions]})
    for version in versions:
        storage.remove(version_url(root, version))


def present(root: str) -> list[str]:
    """Ids of all directories, published or not."""
    fs, path = storage.filesystem(storage.join(root, _FOLDER))
    if not fs.isdir(path):
        return []
    names = (name.rstrip("/").rsplit("/", 1)[-1] for name in fs.ls(path, detail=False))
    return sorted(name for name in names if re.fullmatch(r"\d{6,}-[0-9a-f]{8}", name))
