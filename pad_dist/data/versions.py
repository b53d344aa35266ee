"""Versions of a dataset: immutable directories, and one pointer that says which are published.

    <root>/versions.json               ids of the published versions, oldest first; the last is current
    <root>/versions/<id>/              one version: manifest.json and what it lists
    <root>/text/                       text vectors, shared by versions

A build fills a directory of its own and publishes it by one atomic write of the
pointer, so a reader sees the old version or the new one, and keeps the files of
the one it opened. A directory that the pointer does not name was never published.
"""

from __future__ import annotations

import secrets

from pad_dist import storage
from pad_dist.errors import UserError

_POINTER = "versions.json"
_FOLDER = "versions"


def published(root: str) -> list[str]:
    """Ids of the published versions, oldest first; none where there is no dataset."""
    url = storage.join(root, _POINTER)
    return list(storage.read_json(url)["versions"]) if storage.exists(url) else []


def current(root: str) -> str | None:
    """Id of the version that a new reader opens."""
    return (published(root) or [None])[-1]


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
    """Id for a build that starts now: the next number, and letters that no other build has."""
    return f"{max([0, *map(number, _present(root))]) + 1:06d}-{secrets.token_hex(4)}"


def publish(root: str, version: str, grown_from: str | None) -> None:
    """Make a complete version the current one, then delete older directories that never were published.

    Raises:
        UserError: another build has published since this one began from `grown_from`.
    """
    before = published(root)
    if (before or [None])[-1] != grown_from:
        raise UserError(
            f"{root}: version {before[-1] if before else 'none'} was published while this build grew from "
            f"{grown_from}: run it again, and one build of a dataset at a time"
        )
    storage.write_json(storage.join(root, _POINTER), {"versions": [*before, version]})
    for other in _present(root):
        if other not in before and number(other) < number(version):
            storage.remove(version_url(root, other))


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


def _present(root: str) -> list[str]:
    """Ids of all directories, published or not."""
    fs, path = storage.filesystem(storage.join(root, _FOLDER))
    if not fs.isdir(path):
        return []
    return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in fs.ls(path, detail=False))
