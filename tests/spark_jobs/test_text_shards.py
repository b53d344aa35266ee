"""One range of items, in-process: what is embedded, what is taken over, what a failure leaves."""

import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pad_dist.config import TextConfig
from pad_dist.dataset.manifest import verify_file
from pad_dist.errors import UserError
from spark_jobs import text_shards
from spark_jobs.text_encoder import Encoder, load_encoder, model_revision
from spark_jobs.text_reduction import Reduction
from spark_jobs.text_shards import Shard, Source, convert_shard, embed_range, raw_rows
from tests.support.item_files import write_items

TEXT = TextConfig(rows_per_shard=3)
TEXTS = ["tea", "green tea", "coffee", "dog treats", "tea", "soap", "tea", "cat food", "milk", "bread"]


@dataclass
class Counting:
    """The real encoder, and which texts it was given; it fails after `limit`."""

    encoder: Encoder
    limit: int = 1000
    given: list[str] = field(default_factory=list)

    @property
    def dim(self) -> int:
        return self.encoder.dim

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        if len(self.given) + len(texts) > self.limit:
            raise KeyboardInterrupt
        self.given += texts
        return self.encoder.encode(texts)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    counting = Counting(load_encoder(TEXT, "test"))
    monkeypatch.setattr(text_shards, "load_encoder", lambda *_: counting)
    yield counting
    text_shards._item_texts.cache_clear()


def source(url: Path, texts: list[str], text: TextConfig = TEXT) -> Source:
    """A dataset with these items, as a job that begins now sees it."""
    items = tuple(write_items(url, texts).groups["items"])
    folder = url / "text"
    present = tuple(sorted(file.name for file in folder.iterdir())) if folder.exists() else ()
    return Source(str(url), str(url), items, text, model_revision(text), present)


def embed_all(job: Source) -> list[Shard]:
    size, items = job.text.rows_per_shard, sum(entry.rows for entry in job.items)
    return [embed_range(job, first, min(first + size, items + 1), "cpu") for first in range(1, items + 1, size)]


def rows_of(job: Source, shards: list[Shard]) -> NDArray[np.float16]:
    return np.concatenate([raw_rows(job.root, shard.entry)[1] for shard in shards])


def test_each_text_of_a_range_is_embedded_once(tmp_path: Path, model: Counting) -> None:
    job = source(tmp_path, ["tea", "soap", "tea"])
    shards = embed_all(job)
    assert model.given == ["tea", "soap"] and [shard.embedded for shard in shards] == [2]
    np.testing.assert_allclose(rows_of(job, shards), model.encoder.encode(["tea", "soap", "tea"]), atol=5e-3)


def test_a_job_killed_in_the_middle_goes_on_without_embedding_anything_twice(tmp_path: Path, model: Counting) -> None:
    (tmp_path / "whole").mkdir()
    whole = embed_all(source(tmp_path / "whole", TEXTS))
    wanted, model.given, model.limit = model.given, [], 5
    with pytest.raises(KeyboardInterrupt):
        embed_all(source(tmp_path / "killed", TEXTS))
    assert 0 < len(model.given) < len(wanted)
    model.limit = 1000
    assert embed_all(source(tmp_path / "killed", TEXTS))[1:] != []
    assert model.given == wanted
    again = embed_all(source(tmp_path / "killed", TEXTS))
    assert model.given == wanted and [shard.entry for shard in again] == [shard.entry for shard in whole]


def test_only_new_and_changed_texts_are_embedded_when_items_grow(tmp_path: Path, model: Counting) -> None:
    before = embed_all(source(tmp_path, TEXTS))
    kept = {shard.entry.path for shard in before}
    model.given.clear()
    grown = [*TEXTS[:3], "dog biscuits", *TEXTS[4:], "rice", "", "oats"]
    job = source(tmp_path, grown)
    shards = embed_all(job)
    assert sorted(model.given) == ["dog biscuits", "oats", "rice"]
    assert [shard.entry.path in kept for shard in shards] == [True, False, True, False, False]
    for shard in before:  # an older version's files stay
        verify_file(str(tmp_path), shard.entry)
    expected = model.encoder.encode([text or "none" for text in grown]) * np.array([[bool(text)] for text in grown])
    np.testing.assert_allclose(rows_of(job, shards), expected, atol=5e-3)


def test_rows_are_found_under_another_size_of_files(tmp_path: Path, model: Counting) -> None:
    embed_all(source(tmp_path, TEXTS))
    model.given.clear()
    for rows in (4, 2, 100):
        embed_all(source(tmp_path, TEXTS, TextConfig(rows_per_shard=rows)))
    assert model.given == []


def test_items_without_a_text_have_zeros_and_are_not_given_to_the_model(tmp_path: Path, model: Counting) -> None:
    job = source(tmp_path, ["", "tea", "", "", "", ""])
    rows = rows_of(job, embed_all(job))
    assert model.given == ["tea"]
    assert rows.shape == (6, 384) and rows.any(axis=1).tolist() == [False, True, False, False, False, False]


def test_another_recipe_takes_nothing_over(tmp_path: Path, model: Counting) -> None:
    embed_all(source(tmp_path, TEXTS))
    model.given.clear()
    embed_all(source(tmp_path, TEXTS, TextConfig(rows_per_shard=3, pooling="last")))
    assert set(model.given) == set(TEXTS)


def test_reduced_rows_are_never_taken_for_the_model_s(tmp_path: Path, model: Counting) -> None:
    reduction = Reduction(np.zeros(384, np.float32), np.ones((384, 2), np.float32))
    shards = embed_all(source(tmp_path, TEXTS))
    reduced = [convert_shard(str(tmp_path), shard.entry, "reduced", reduction, "float16") for shard in shards]
    assert [shard.dim for shard in reduced] == [2] * 4
    for shard in shards:
        (tmp_path / shard.entry.path).unlink()
    model.given.clear()
    again = embed_all(source(tmp_path, [*TEXTS, "rice"]))
    assert set(model.given) == {*TEXTS, "rice"} and {shard.dim for shard in again} == {384}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_file_is_made_again(tmp_path: Path, model: Counting, damage: Callable[[Path], None]) -> None:
    shards = embed_all(source(tmp_path, TEXTS))
    damage(tmp_path / shards[1].entry.path)
    again = embed_all(source(tmp_path, TEXTS))
    assert [shard.entry for shard in again] == [shard.entry for shard in shards]
    assert [shard.embedded for shard in again] == [0, 3, 0, 0]


def test_a_store_that_fails_is_one_clear_line_and_leaves_no_part_of_a_file(tmp_path: Path, model: Counting) -> None:
    job = source(tmp_path, TEXTS)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # the operating system refuses longer files
    try:
        with pytest.raises(UserError, match=r"part-000000001-.* cannot be written \(.*File too large") as error:
            embed_all(job)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert list((tmp_path / "text").iterdir()) == []
