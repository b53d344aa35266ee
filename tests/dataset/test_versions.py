"""Publishing, resolving and retiring versions, and what is left when a process dies halfway."""

import os
import time
from pathlib import Path

import pytest

from pad_dist import storage
from pad_dist.dataset import versions
from pad_dist.dataset.garbage import collect, find_garbage
from pad_dist.dataset.manifest import FileEntry, Manifest
from pad_dist.dataset.reader import Dataset
from pad_dist.errors import UserError
from tests.support.tiny_dataset import random_sequences, write_tiny_dataset


def build(root: Path, items: int = 20) -> str:
    """A complete directory that is not published."""
    version = versions.next_id(str(root))
    write_tiny_dataset(Path(versions.version_url(str(root), version)), random_sequences(9, items), items)
    return version


def publish(root: Path, items: int = 20) -> str:
    version = build(root, items)
    versions.publish(str(root), version, versions.current(str(root)))
    return version


def write_text(root: Path, version: str, files: list[str], age_hours: float = 0, recipe: str = "minilm") -> None:
    """Vectors under the root, and the manifest of a version that lists them and a transform."""
    for name in files:
        path = root / "text" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"vectors")
        os.utime(path, (time.time() - 3600 * age_hours,) * 2)
    *vectors, transform = [f"text/{name}" for name in files]
    entries = [FileEntry(path=path, rows=1, bytes=7, sha256="0", first_index=1) for path in vectors]
    parameters = {"transform": {"kind": "pca", "path": transform}}
    manifest = Manifest(counts={}, parameters=parameters, groups={"text": entries})
    storage.write_json(
        storage.join(versions.version_url(str(root), version), f"text/{recipe}.json"), manifest.model_dump()
    )


def test_the_last_published_version_is_read(tmp_path: Path) -> None:
    root = str(tmp_path)
    assert versions.current(root) is None and versions.published(root) == []
    ids = [publish(tmp_path, items) for items in (20, 21)]
    assert [versions.number(version) for version in ids] == [1, 2]
    assert versions.published(root) == ids
    assert versions.resolve(root) == versions.version_url(root, ids[1])
    assert Dataset.open(root).items == 21


def test_a_versions_directory_resolves_to_itself(tmp_path: Path) -> None:
    first, _ = publish(tmp_path, 20), publish(tmp_path, 21)
    url = versions.version_url(str(tmp_path), first)
    assert versions.resolve(url) == url
    assert versions.root_of(url) == versions.root_of(f"{url}/") == str(tmp_path)
    assert versions.root_of(str(tmp_path)) == str(tmp_path)
    assert Dataset.open(url).items == 20


def test_a_publish_killed_before_the_pointer_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, dying = publish(tmp_path), build(tmp_path, 30)

    def kill(source: str, target: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pad_dist.storage.os.replace", kill)
        with pytest.raises(KeyboardInterrupt):
            versions.publish(str(tmp_path), dying, first)
    assert versions.published(str(tmp_path)) == [first]
    assert Dataset.open(str(tmp_path)).items == 20
    assert versions.present(str(tmp_path)) == [first, dying]
    # The next build takes another number, and clears what the dead one left.
    third = publish(tmp_path, 25)
    assert versions.number(third) == 3
    assert versions.present(str(tmp_path)) == [first, third]


def test_of_two_builds_that_race_one_is_published(tmp_path: Path) -> None:
    base = publish(tmp_path)
    one, other = versions.next_id(str(tmp_path)), versions.next_id(str(tmp_path))
    assert one != other
    versions.publish(str(tmp_path), one, base)
    with pytest.raises(UserError, match=f"version {one} was published while this build grew from {base}: run it again"):
        versions.publish(str(tmp_path), other, base)
    assert versions.published(str(tmp_path)) == [base, one]


def test_of_two_first_builds_that_race_one_is_published(tmp_path: Path) -> None:
    one, other = build(tmp_path), build(tmp_path)
    versions.publish(str(tmp_path), one, None)
    with pytest.raises(UserError, match=f"version {one} was published while this build grew from None"):
        versions.publish(str(tmp_path), other, None)


def test_a_running_build_survives_a_publish_of_a_lower_number(tmp_path: Path) -> None:
    early, late = build(tmp_path), build(tmp_path)
    versions.publish(str(tmp_path), early, None)
    assert versions.present(str(tmp_path)) == [early, late]


def test_retiring_unpublishes_and_deletes_but_never_the_current_version(tmp_path: Path) -> None:
    ids = [publish(tmp_path) for _ in range(3)]
    with pytest.raises(UserError, match=f"version {ids[2]} is the current one and stays"):
        versions.retire(str(tmp_path), ids[1:])
    assert versions.present(str(tmp_path)) == ids
    versions.retire(str(tmp_path), [ids[0]])
    assert versions.published(str(tmp_path)) == versions.present(str(tmp_path)) == ids[1:]


def test_what_a_killed_retirement_left_goes_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [publish(tmp_path) for _ in range(3)]

    def kill(url: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pad_dist.dataset.versions.storage.remove", kill)
        with pytest.raises(KeyboardInterrupt):
            versions.retire(str(tmp_path), ids[:2])
    assert versions.published(str(tmp_path)) == ids[2:]  # no reader is sent to half a directory
    garbage = find_garbage(str(tmp_path), keep=1, grace_hours=24)
    assert (garbage.retired, garbage.abandoned) == ([], ids[:2])
    collect(str(tmp_path), garbage)
    assert versions.present(str(tmp_path)) == ids[2:]


def test_a_version_is_found_by_number_id_or_beginning(tmp_path: Path) -> None:
    ids = [publish(tmp_path) for _ in range(2)]
    root = str(tmp_path)
    assert versions.find(root) == ids[1]
    assert [versions.find(root, name) for name in ("1", "000001", ids[0], ids[0][:9])] == [ids[0]] * 4
    with pytest.raises(UserError, match=rf"'7' is no published version; there are {ids[0]}, {ids[1]}: give one"):
        versions.find(root, "7")
    with pytest.raises(UserError, match="'00000' may mean 2 versions; there are"):
        versions.find(root, "00000")


def test_without_a_dataset_the_message_says_where_one_may_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="so no dataset is there: build it first"):
        versions.find(str(tmp_path / "nothing"))
    url = versions.version_url(str(tmp_path), publish(tmp_path))
    with pytest.raises(UserError, match=f"is one version of {tmp_path}: give that"):
        versions.find(url)


def test_foreign_directories_are_no_versions(tmp_path: Path) -> None:
    version = publish(tmp_path)
    (tmp_path / "versions" / "notes").mkdir()
    assert versions.present(str(tmp_path)) == [version]
    assert versions.number(versions.next_id(str(tmp_path))) == 2


def test_garbage_is_old_versions_dead_builds_and_texts_of_none(tmp_path: Path) -> None:
    root = str(tmp_path)
    old = publish(tmp_path)
    dead = build(tmp_path)
    kept, current = publish(tmp_path), "000009-0a0b0c0d"
    versions.publish(root, current, kept)  # publishing has removed the dead build: put it back
    write_tiny_dataset(Path(versions.version_url(root, current)), random_sequences(9, 20), 20)
    write_tiny_dataset(Path(versions.version_url(root, dead)), random_sequences(9, 20), 20)
    running = build(tmp_path)
    write_text(tmp_path, old, ["old.parquet", "shared.parquet", "old-pca.npz"], age_hours=30)
    write_text(tmp_path, old, ["other.parquet", "other-pca.npz"], age_hours=30, recipe="smollm2")
    write_text(tmp_path, kept, ["shared.parquet", "kept.parquet", "kept-pca.npz"], age_hours=30)
    write_text(tmp_path, running, ["running.parquet", "running-pca.npz"], age_hours=30)
    (tmp_path / "text" / "young.parquet").write_bytes(b"a job that has not ended")

    before = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    garbage = find_garbage(root, keep=2, grace_hours=24)
    assert (garbage.retired, garbage.abandoned) == ([old], [dead])
    assert garbage.files == [
        f"text/{name}" for name in ("old-pca.npz", "old.parquet", "other-pca.npz", "other.parquet")
    ]
    assert garbage.recipes == ["smollm2"]

    pointer = (tmp_path / "versions.json").stat().st_size
    collect(root, garbage)
    after = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    shorter = pointer - (tmp_path / "versions.json").stat().st_size
    assert before - after == garbage.bytes + shorter
    assert versions.published(root) == [kept, current]
    assert versions.present(root) == sorted([kept, current, running])
    left = ["kept-pca.npz", "kept.parquet", "running-pca.npz", "running.parquet", "shared.parquet", "young.parquet"]
    assert sorted(path.name for path in (tmp_path / "text").iterdir()) == left
    assert find_garbage(root, keep=2, grace_hours=24).bytes == 0


def test_more_versions_kept_than_there_are_is_no_garbage(tmp_path: Path) -> None:
    publish(tmp_path)
    assert find_garbage(str(tmp_path), keep=5, grace_hours=0).retired == []


def test_a_damaged_text_manifest_stops_gc_before_anything_goes(tmp_path: Path) -> None:
    old, current = publish(tmp_path), publish(tmp_path)
    write_text(tmp_path, current, ["a.parquet", "pca.npz"], age_hours=30)
    (tmp_path / "versions" / current / "text" / "minilm.json").write_text("{")
    with pytest.raises(UserError, match=r"minilm\.json is not valid JSON"):
        find_garbage(str(tmp_path), keep=1, grace_hours=24)
    assert versions.published(str(tmp_path)) == [old, current]
