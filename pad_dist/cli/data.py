"""The versions of a dataset: list, show, compare, and remove what is no longer needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer

from pad_dist import storage
from pad_dist.dataset import versions
from pad_dist.dataset.garbage import collect, find_garbage, size_of, text_recipes
from pad_dist.dataset.manifest import Manifest, read_manifest
from pad_dist.dataset.quality import build_drift
from pad_dist.evaluation.report import print_table
from pad_dist.runtime.entry import user_errors

app = typer.Typer(no_args_is_help=True, help=__doc__)
Root = Annotated[str, typer.Argument(metavar="ROOT", help="dataset: the config's `dataset`, such as runs/demo/dataset")]
Version = Annotated[str, typer.Argument(help="number (4) or id (000004-1f2e3d4c)")]
Rows = Iterable[tuple[object, ...]]

_NOT_SETTINGS = ("item_map", "bin_cuts")
_SHOWN_FILES = 5


@app.command("list")
def list_versions(root: Root) -> None:
    """Every published version, oldest first; readers open the current one."""
    with user_errors():
        current = versions.find(root)
        rows = []
        for version in versions.published(root):
            manifest = _manifest(root, version)
            counts = (f"{manifest.counts[name]:,}" for name in ("users", "items", "interactions"))
            size = f"{size_of(versions.version_url(root, version)):,}"
            recipes = ", ".join(text_recipes(root, version)) or "none"
            is_current = "*" if version == current else ""
            rows.append((is_current, version, _created(manifest), *counts, manifest.content_hash()[:12], recipes, size))
        header = ("", "version", "created", "users", "items", "interactions", "content", "texts", "bytes")
        print_table("", header, rows)
        print(f"* current; text vectors shared by versions: {size_of(storage.join(root, 'text')):,} bytes")


@app.command()
def show(
    root: Root, version: Annotated[str | None, typer.Argument(help="number or id; default: the current one")] = None
) -> None:
    """Counts, settings, inputs and rejected rows of one version, and where its quality report is."""
    with user_errors():
        chosen = versions.find(root, version)
        manifest = _manifest(root, chosen)
        current = " (current)" if chosen == versions.find(root) else ""
        print(f"version {chosen}{current}, created {_created(manifest)}, content {manifest.content_hash()}")
        print_table("counts", ("", "rows"), ((name, f"{count:,}") for name, count in manifest.counts.items()))
        print_table("settings", ("data.", "value"), sorted(_settings(manifest).items()))
        print_table("inputs", ("", "files"), _input_rows(manifest))
        print_table("rejected rows", ("reason", "rows"), ((why, f"{n:,}") for why, n in manifest.rejected.items()))
        print(f"item map: {_item_map(manifest)[-1][0]:,} items, grown in {len(_item_map(manifest))} version(s)")
        page = storage.join(versions.version_url(root, chosen), "quality.html")
        print(f"quality report: {page if storage.exists(page) else 'none'}")


@app.command()
def diff(root: Root, a: Version, b: Version) -> None:
    """What changed from version A to version B."""
    with user_errors():
        old, new = versions.find(root, a), versions.find(root, b)
        then, now = _manifest(root, old), _manifest(root, new)
        drift = build_drift(_quality(root, old), _quality(root, new))
        if then.content_hash() == now.content_hash():
            print("the content is the same")
        print_table("counts", ("", old, new, "change"), _count_rows(then.counts, now.counts))
        print_table("rejected rows", ("", old, new, "change"), _count_rows(then.rejected, now.rejected))
        print_table("settings", ("data.", old, new), _changed(_settings(then), _settings(now)))
        print_table("inputs new or changed", ("", "files"), _input_rows(now, then))
        print(_item_map_line(old, then, new, now))
        _print_drift(drift)


@app.command()
def gc(
    root: Root,
    keep: Annotated[int, typer.Option(help="newest versions that stay; the current one always does")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would go, remove nothing")] = False,
    grace_hours: Annotated[float, typer.Option(help="text files younger than this stay", min=0)] = 24,
) -> None:
    """Retire old versions and remove what no version needs: dead builds, text vectors.

    After an erasure the older versions still hold the erased keys: this is what finally removes them.

    Readers of a retired version fail, and so may an embedding job that runs meanwhile. Embed the current version
    first: vectors that only retired versions have are made anew.
    """
    with user_errors():
        garbage = find_garbage(root, keep, grace_hours)
        if not dry_run:
            collect(root, garbage)
    say = "would remove" if dry_run else "removed"
    for kind, names in (("version", garbage.retired), ("dead build", garbage.abandoned), ("file", garbage.files)):
        for name in names:
            print(f"{say} {kind} {name}")
    if garbage.recipes:
        print(f"no version that stays has texts embedded with {', '.join(garbage.recipes)}: that starts anew")
    print(f"{say} {garbage.bytes:,} bytes")


def _manifest(root: str, version: str) -> Manifest:
    return read_manifest(versions.version_url(root, version), "python -m spark_jobs.build_sequences --config CONFIG")


def _quality(root: str, version: str) -> dict[str, Any]:
    quality: dict[str, Any] = storage.read_json(storage.join(versions.version_url(root, version), "quality.json"))
    return quality


def _created(manifest: Manifest) -> str:
    return str(manifest.lineage.get("created", "unknown"))


def _item_map(manifest: Manifest) -> list[list[Any]]:
    """[items, digest] of each version that added items."""
    return list(manifest.parameters["item_map"])


def _item_map_line(old: str, then: Manifest, new: str, now: Manifest) -> str:
    (items, digest), grown = _item_map(then)[-1], _item_map(now)
    if [items, digest] not in grown:
        return f"item map: {new} does not extend {old}: checkpoints of one do not fit the other"
    return f"item map: {new} extends {old} by {grown[-1][0] - items:,} items"


def _settings(manifest: Manifest) -> dict[str, str]:
    return dict(_flat({name: v for name, v in manifest.parameters.items() if name not in _NOT_SETTINGS}))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def _input_rows(manifest: Manifest, known: Manifest | None = None) -> Rows:
    """Input name and files, but those that `known` was made from as they are."""
    before = known.lineage.get("inputs", {}) if known else {}
    for name, files in manifest.lineage.get("inputs", {}).items():
        new = [file for file, state in files.items() if before.get(name, {}).get(file) != state]
        if new:
            more = [f"and {len(new) - _SHOWN_FILES:,} more"] if len(new) > _SHOWN_FILES else []
            yield name, "\n".join([*new[:_SHOWN_FILES], *more])


def _changed(then: Mapping[str, str], now: Mapping[str, str]) -> Rows:
    for name in sorted({*then, *now}):
        if then.get(name) != now.get(name):
            yield name, then.get(name, "not set"), now.get(name, "not set")


def _count_rows(then: Mapping[str, int], now: Mapping[str, int]) -> Rows:
    for name in sorted({*then, *now}):
        before, after = then.get(name, 0), now.get(name, 0)
        if before != after:
            yield name, f"{before:,}", f"{after:,}", f"{after - before:+,}"


def _print_drift(drift: Mapping[str, Any]) -> None:
    print_table("distance, 0 (equal) to 1", ("of", ""), ((name, f"{d:.3f}") for name, d in drift["distances"].items()))
    for line in drift["moved"]:
        print(f"moved: {line}")
