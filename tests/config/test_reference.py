"""The reference of the config keys and the origins of resolved values, both read off the sections."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pad_dist.config import Config
from pad_dist.config.keys import walk
from pad_dist.config.load import load_config
from pad_dist.config.origins import resolve
from pad_dist.config.reference import EXAMPLE_ERROR, REQUIRED, Entry, as_yaml, groups, markdown, select
from pad_dist.errors import UserError

ROOT = Path(__file__).parents[2]
CONFIGS = [
    file for file in sorted((ROOT / "configs").glob("*.yaml")) if not file.stem.startswith(("compare", "space_"))
]
PRIVATE_WORDS = re.compile(r"\b(held|found|beside|lies|mark)\b")


def entries() -> list[Entry]:
    return [entry for group in groups() for entry in group.entries]


def entry(name: str) -> Entry:
    (one,) = (entry for entry in entries() if entry.name == name)
    return one


def origins(tmp_path: Path, text: str, *overrides: str, out: str | None = None) -> dict[str, tuple[Any, str]]:
    """Value and origin of each key; the file is called "file"."""
    path = tmp_path / "run.yaml"
    path.write_text(text)
    resolved = resolve(str(path), overrides, out)
    return {one.key: (one.value, one.origin.replace(str(path), "file")) for one in resolved}


def test_the_document_is_what_the_sections_say() -> None:
    told = "docs/config.md is old: pad-dist config keys --markdown > docs/config.md"
    assert (ROOT / "docs/config.md").read_text() == markdown(), told


def test_the_reference_has_every_key() -> None:
    assert {entry.name for entry in entries()} == {
        key.name for key in walk(Config) if not key.sections or key.name in ("data.synthetic", "sparse.hashed")
    }
    assert [group.name for group in groups()] == ["", *dict.fromkeys(key.name for key in walk(Config) if key.sections)]


def test_every_key_and_every_section_is_described_in_plain_words() -> None:
    texts = {entry.name: entry.description for entry in entries()}
    texts |= {group.name: group.description for group in groups()}
    assert [name for name, text in texts.items() if not re.fullmatch(r"\S.{8,}\.", text)] == []
    assert [name for name, text in texts.items() if PRIVATE_WORDS.search(text)] == []
    # Outside of code Markdown would read these as something else.
    assert [name for name, text in texts.items() if re.search(r"[<*|]", re.sub(r"`[^`]*`", "", text))] == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("seed", "integer, at least 0 and below 2147483648"),
        ("name", "text, not empty"),
        ("out", "text"),
        ("training.zero_stage", "one of 0, 1, 2, 3"),
        ("pretrain.lr", "number, above 0"),
        ("pretrain.dropout", "number, at least 0 and below 1, or null"),
        ("align.item_share", "number, above 0 and at most 1"),
        ("align.anchor", "true or false"),
        ("disentangle.gate", "one of frequency, smooth, none"),
        ("disentangle.experts", "list of id, aligned, text, item_knn, at least 2 of them"),
        ("data.columns.text", "text or list of text"),
        ("data.spark_conf", "mapping of text to text"),
        ("model.backbone.norm", "one of pre, post"),
        ("model.backbone.kind", "one of sasrec, ligr, gru4rec, caser"),
    ],
)
def test_types_and_bounds_are_told_in_words(name: str, words: str) -> None:
    assert entry(name).type == words


def test_a_key_names_the_kinds_that_have_it() -> None:
    kinds = {entry.name: entry.kinds for entry in entries()}
    assert kinds["model.backbone.kind"] == ()
    assert kinds["model.backbone.heads"] == ("sasrec", "ligr")
    assert kinds["model.backbone.layers"] == ("gru4rec",)
    loss = entry("training.loss.kind")
    assert loss.default == "sampled_softmax"
    assert all(f"`{kind}`: " in loss.description for kind in ("sampled_softmax", "softmax", "gbce", "bce"))
    of_kinds = {key.name for key in walk(Config) if len(key.sections) > 1}
    assert of_kinds == {name for name in of_kinds if f"`{name}`" in markdown().partition("## Errors")[0]}


def test_defaults_are_those_of_a_config_that_sets_nothing(tmp_path: Path) -> None:
    by_kind = {"sasrec", "sampled_softmax", "mk_mmd"}
    defaults = {one.name: one.default for one in entries() if not one.kinds or by_kind & {*one.kinds}}
    resolved = origins(tmp_path, "name: x")
    for key in set(resolved) - {"name", "out", "dataset"}:
        value, origin = resolved[key]
        assert (key, defaults[key], origin) == (key, as_yaml(value), "default")
    assert defaults["name"] == defaults["sparse.hashed.rows"] == REQUIRED


def test_a_section_is_listed_with_those_in_it_and_a_key_alone() -> None:
    assert [group.name for group in select("model")] == [
        "model",
        *(f"model.{name}" for name in ("backbone", "projector", "aligned", "item_knn")),
    ]
    assert [[entry.name for entry in group.entries] for group in select("align.gamma")] == [["align.gamma"]]


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("traning", "did you mean training?"),
        ("model.bakcbone", "did you mean model.backbone?"),
        ("backbone", "did you mean model.backbone?"),
        ("gamma", "did you mean align.gamma?"),
        ("zzzz", "the sections are data, text, model, sparse, training, checkpoint, pretrain, pretrain_text, align, "),
    ],
)
def test_an_unknown_section_names_the_nearest_one(wrong: str, hint: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"unknown section {wrong}; {hint}")):
        select(wrong)


def test_the_error_in_the_document_is_the_one_that_is_told() -> None:
    with pytest.raises(UserError) as told:
        load_config(str(ROOT / "configs/demo.yaml"), ["model.dmi=3"])
    assert str(told.value) == EXAMPLE_ERROR


def test_each_value_names_what_has_set_it(tmp_path: Path) -> None:
    text = "name: x\nmethod: clip\nmodel: {dim: 64}\nalign: {gamma: 0.5, alignment: {kind: mk_mmd, kernel: linear}}"
    found = origins(tmp_path, text, "model.dim=32", "model.dim=16", "seed=1", "seed=2", out="o")
    assert found["model.dim"] == (16, "override model.dim")
    assert found["seed"] == (2, "override seed")
    assert found["align.gamma"] == (0.5, "file")
    assert found["align.epochs"] == (100, "default")
    assert found["align.alignment.kind"] == ("infonce", "method clip")
    assert found["align.alignment.temperature"] == (0.07, "default")
    assert found["out"] == ("o", "option --out")
    assert found["dataset"] == ("o/dataset", "default")
    assert not {"align.alignment.kernel", "model.backbone.window"} & set(found)


def test_a_section_in_an_override_replaces_what_the_file_says(tmp_path: Path) -> None:
    text = "name: x\nmodel: {dropout: 0.1, backbone: {blocks: 3, norm: post, heads: 4}}"
    whole = origins(tmp_path, text, "model.backbone={kind: ligr, heads: 8}")
    assert whole["model.backbone.heads"] == (8, "override model.backbone")
    assert whole["model.backbone.blocks"] == (1, "default")
    assert whole["model.dropout"] == (0.1, "file")
    kind = origins(tmp_path, text, "model.backbone.kind=ligr", "model.backbone.kind=sasrec")
    assert kind["model.backbone.kind"] == ("sasrec", "override model.backbone.kind")
    assert kind["model.backbone.blocks"] == (3, "file")
    assert kind["model.backbone.norm"] == ("pre", "default")


def test_values_that_follow_from_others_are_defaults(tmp_path: Path) -> None:
    found = origins(tmp_path, "name: x\nout: ''\ndata: {synthetic: {}}")
    assert found["out"] == ("runs/x", "default")
    assert found["data.items"] == ("runs/x/raw/items.csv.gz", "default")
    assert found["data.synthetic"] == ({}, "file")
    assert found["data.synthetic.users"] == (3000, "default")


def test_secrets_are_hidden(tmp_path: Path) -> None:
    text = (
        "name: x\ndataset: https://me:word@host/d\n"
        "data: {spark_conf: {spark.hadoop.fs.s3a.secret.key: abc, spark.driver.memory: 2g}}"
    )
    found = origins(tmp_path, text)
    assert found["dataset"][0] == "https://***@host/d"
    assert found["data.spark_conf"] == (
        {"spark.hadoop.fs.s3a.secret.key": "***", "spark.driver.memory": "2g"},
        "file",
    )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_values_are_those_of_the_config(path: Path) -> None:
    config = load_config(str(path))
    resolved = resolve(str(path))
    assert {one.key for one in resolved} <= {entry.name for entry in entries()}
    for one in resolved:
        value: Any = config
        for name in one.key.split("."):
            value = getattr(value, name)
        assert value == one.value
        assert one.origin in (str(path), "default")
