import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pad_dist import storage
from pad_dist.dataset.manifest import FileEntry, Manifest, read_manifest, verify_file, write_manifest
from pad_dist.errors import UserError


@pytest.fixture(params=["local", "memory"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty directory, once as a local path and once as the URL of another filesystem."""
    return str(tmp_path / "base") if request.param == "local" else f"memory://{uuid.uuid4().hex}"


def listing(url: str) -> list[str]:
    fs, path = storage.filesystem(url)
    return sorted(name.rpartition("/")[2] for name in fs.find(path))


def test_a_file_appears_when_the_block_ends(base: str) -> None:
    url = storage.join(base, "deep", "er", "file.bin")
    with storage.atomic_writer(url) as file:
        file.write(b"one ")
        assert not storage.exists(url)
        file.write(b"two")
    assert storage.read_bytes(url) == b"one two"
    assert listing(base) == ["file.bin"]


def test_a_failed_write_leaves_nothing(base: str) -> None:
    url = storage.join(base, "file.bin")
    with pytest.raises(KeyboardInterrupt), storage.atomic_writer(url) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert listing(base) == []


def test_a_failed_rewrite_leaves_the_old_content(base: str) -> None:
    url = storage.join(base, "file.bin")
    storage.write_bytes(url, b"old")
    with pytest.raises(ZeroDivisionError), storage.atomic_writer(url) as file:
        file.write(b"half of the new")
        raise ZeroDivisionError
    assert storage.read_bytes(url) == b"old"
    assert listing(base) == ["file.bin"]


def test_a_rewrite_replaces_the_content(base: str) -> None:
    url = storage.join(base, "file.bin")
    storage.write_bytes(url, b"a longer old content")
    storage.write_bytes(url, b"new")
    assert storage.read_bytes(url) == b"new"
    assert listing(base) == ["file.bin"]


def test_sha256_is_that_of_the_whole_file(base: str) -> None:
    content = bytes(range(256)) * 8192 + b"more than one block"
    url = storage.join(base, "file.bin")
    storage.write_bytes(url, content)
    assert storage.sha256(url) == hashlib.sha256(content).hexdigest()


def test_equal_json_values_are_equal_bytes(base: str) -> None:
    one, two = storage.join(base, "1.json"), storage.join(base, "2.json")
    storage.write_json(one, {"a": 1, "b": [2]})
    storage.write_json(two, {"b": [2], "a": 1})
    assert storage.read_bytes(one) == storage.read_bytes(two)
    assert storage.read_json(one) == {"a": 1, "b": [2]}


def test_reading_what_is_not_there_names_it(base: str) -> None:
    url = storage.join(base, "none.json")
    with pytest.raises(UserError, match=r"none\.json does not exist"):
        storage.read_json(url)


@pytest.mark.parametrize("content", [b'{"a": ', b"PAR1\x80", b""], ids=["truncated", "binary", "empty"])
def test_what_is_not_json_is_one_clear_line(base: str, content: bytes) -> None:
    url = storage.join(base, "bad.json")
    storage.write_bytes(url, content)
    with pytest.raises(UserError) as error:
        storage.read_json(url)
    assert str(error.value).startswith(f"{url} is not valid JSON: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("bogus://bucket/file", r"^bogus://bucket/file .*not known: bogus"),
        ("oss://bucket/file", r"^oss://bucket/file .*ossfs"),
    ],
    ids=["unknown protocol", "missing package"],
)
def test_a_url_that_cannot_be_opened_is_one_clear_line(url: str, says: str) -> None:
    for use in (storage.exists, storage.read_bytes, storage.filesystem):
        with pytest.raises(UserError, match=says) as error:
            use(url)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["file/new.bin", "file/deep/new.bin", "folder"])
def test_a_place_that_is_taken_is_one_clear_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_bytes(b"kept")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=f"^{tmp_path}/{place} cannot be written") as error:
        storage.write_bytes(f"{tmp_path}/{place}", b"x")
    assert "\n" not in str(error.value)
    assert (tmp_path / "file").read_bytes() == b"kept"
    assert listing(str(tmp_path)) == ["file"]


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """Permissions do not bind root: be nobody meanwhile."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    (tmp_path / "closed").mkdir(mode=0o555)
    return tmp_path / "closed"


@pytest.mark.parametrize("place", ["new.bin", "deep/new.bin"])
def test_a_place_without_permission_is_one_clear_line(closed: Path, unprivileged: None, place: str) -> None:
    with pytest.raises(UserError, match=f"^{closed}/{place} cannot be written"):
        storage.write_bytes(f"{closed}/{place}", b"x")


def test_an_error_of_the_block_itself_stays_what_it_is(base: str) -> None:
    with pytest.raises(PermissionError, match="own"), storage.atomic_writer(storage.join(base, "file.bin")):
        raise PermissionError("own")


def test_remove_takes_a_tree_and_what_is_not_there(base: str) -> None:
    storage.write_bytes(storage.join(base, "a", "b"), b"x")
    storage.remove(storage.join(base, "a"))
    storage.remove(storage.join(base, "a"))
    assert not storage.exists(storage.join(base, "a"))


def manifest_of(base: str, content: bytes) -> Manifest:
    storage.write_bytes(storage.join(base, "part"), content)
    digest = hashlib.sha256(content).hexdigest()
    entry = FileEntry(path="part", rows=1, bytes=len(content), sha256=digest)
    return Manifest(counts={"users": 1}, parameters={"seed": 7}, groups={"sequences": [entry]})


def test_a_manifest_comes_back_with_the_same_hash(base: str) -> None:
    manifest = manifest_of(base, b"rows")
    write_manifest(base, manifest)
    again = read_manifest(base, "make it")
    assert again == manifest
    assert again.content_hash() == manifest.content_hash()


def test_the_manifest_hash_follows_the_content(base: str) -> None:
    assert manifest_of(base, b"rows").content_hash() != manifest_of(base, b"other").content_hash()


def test_a_missing_manifest_says_what_to_run(base: str) -> None:
    with pytest.raises(UserError, match=r"manifest\.json does not exist: run `make it` first"):
        read_manifest(base, "make it")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([], "has schema version None"),
        ({"schema_version": 2, "new": 1}, "has schema version 2, this library reads 1: run `make it` again"),
        ({"schema_version": 1, "parameters": {}, "groups": {}}, "is not a manifest: counts: Field required"),
    ],
)
def test_a_foreign_manifest_is_refused(base: str, values: object, says: str) -> None:
    storage.write_json(storage.join(base, "manifest.json"), values)
    with pytest.raises(UserError, match=says):
        read_manifest(base, "make it")


def test_a_listed_file_must_be_there_and_unchanged(base: str) -> None:
    entry = manifest_of(base, b"rows").groups["sequences"][0]
    verify_file(base, entry)
    storage.write_bytes(storage.join(base, "part"), b"r0ws")
    with pytest.raises(UserError, match="differs from the manifest"):
        verify_file(base, entry)
    storage.remove(storage.join(base, "part"))
    with pytest.raises(UserError, match="listed in the manifest but missing"):
        verify_file(base, entry)
