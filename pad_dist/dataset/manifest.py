"""The manifest: the only thing a reader of a dataset or text table trusts.

It is written last and never changed. It lists every file with rows, bytes and checksum, so that
readers notice a half-written, truncated or foreign file before they use it.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pad_dist import storage
from pad_dist.errors import UserError

SCHEMA_VERSION = 1


class FileEntry(BaseModel):
    """One data file; its path is relative to the manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    rows: int
    bytes: int
    sha256: str
    first_index: int | None = None
    """First item_index of the file, where files hold item_index ranges."""


class Manifest(BaseModel):
    """What a directory holds.

    `counts` are integers such as users, items, interactions; `parameters` are the
    settings that made the content; `groups` maps a group name ("items",
    "sequences", "text") to its files in order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    counts: dict[str, int]
    parameters: dict[str, Any]
    groups: dict[str, list[FileEntry]]
    rejected: dict[str, int] = {}
    """Input rows set aside, by reason."""
    lineage: dict[str, Any] = {}
    """Where the content came from (see `pad_dist.dataset.lineage`); not part of the content."""

    def content_hash(self) -> str:
        """Hex digest of the content: equal exactly when counts, parameters and files are."""
        text = json.dumps(self.model_dump(exclude={"lineage"}), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def write_manifest(url: str, manifest: Manifest) -> None:
    """Publish `<url>/manifest.json`."""
    storage.write_json(storage.join(url, "manifest.json"), manifest.model_dump())


def read_manifest(url: str, made_by: str) -> Manifest:
    """Read `<url>/manifest.json`; `made_by` is the command to run when it is absent.

    Raises:
        UserError: absent, unreadable or of another schema version.
    """
    path = storage.join(url, "manifest.json")
    if not storage.exists(path):
        raise UserError(f"{path} does not exist: run `{made_by}` first")
    values = storage.read_json(path)
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {version}, this library reads {SCHEMA_VERSION}: run `{made_by}` again"
        )
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path} is not a manifest: {where}: {first['msg']}: run `{made_by}` again") from None


def verify_file(url: str, entry: FileEntry) -> None:
    """Check one file's size and checksum against the manifest.

    Raises:
        UserError: the file differs or is missing.
    """
    path = storage.join(url, entry.path)
    if not storage.exists(path):
        raise UserError(f"{path} is listed in the manifest but missing: build the dataset again")
    digest = storage.sha256(path)
    if digest != entry.sha256:
        raise UserError(
            f"{path} differs from the manifest (sha256 {digest[:12]}, expected {entry.sha256[:12]}): "
            "build the dataset again"
        )
