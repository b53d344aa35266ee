"""`section.key=value` on the command line: what a new kind keeps, and which override an error names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pad_dist.config import Config, GbceConfig, Gru4RecConfig, InfoNceConfig, LigrConfig, SampledSoftmaxConfig
from pad_dist.config.keys import set_key
from pad_dist.config.load import load_config
from pad_dist.errors import UserError


def load(tmp_path: Path, *overrides: str, **values: Any) -> Config:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"name": "x", **values}))
    return load_config(str(path), overrides)


def refused(tmp_path: Path, *overrides: str, **values: Any) -> str:
    with pytest.raises(UserError) as error:
        load(tmp_path, *overrides, **values)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_another_kind_keeps_the_keys_that_both_have_and_drops_the_others(tmp_path: Path) -> None:
    model = {"dim": 32, "backbone": {"kind": "sasrec", "blocks": 3, "heads": 4, "norm": "post", "positions": "end"}}
    ligr = load(tmp_path, "model.backbone.kind=ligr", model=model).model
    assert (ligr.dim, ligr.backbone) == (32, LigrConfig(blocks=3, heads=4, positions="end"))
    gru = load(tmp_path, "model.backbone.kind=gru4rec", "model.backbone.layers=2", model=model).model
    assert gru.backbone == Gru4RecConfig(layers=2)
    training = {"loss": {"negatives": 64, "in_batch": 8}}
    assert load(tmp_path, "training.loss.kind=gbce", training=training).training.loss == GbceConfig(negatives=64)
    same = load(tmp_path, "training.loss.kind=sampled_softmax", training=training).training.loss
    assert same == SampledSoftmaxConfig(negatives=64, in_batch=8)
    align = {"gamma": 0.3, "alignment": {"kind": "fine_grained", "sub_vectors": 2, "temperature": 0.5}}
    infonce = load(tmp_path, "align.alignment.kind=infonce", align=align).align
    assert (infonce.gamma, infonce.alignment) == (0.3, InfoNceConfig(temperature=0.5))


def test_the_last_of_several_overrides_counts_and_a_whole_section_replaces_the_files(tmp_path: Path) -> None:
    model = {"backbone": {"kind": "ligr", "blocks": 3}}
    overrides = ("model.backbone={blocks: 2}", "model.dim=32", "model.dim=64")
    config = load(tmp_path, *overrides, model=model)
    assert (config.model.dim, config.model.backbone.kind, config.model.backbone.blocks) == (64, "sasrec", 2)


def test_setting_a_key_leaves_the_given_values_as_they_are() -> None:
    values = {"model": {"backbone": {"kind": "sasrec", "blocks": 2, "norm": "post"}}}
    changed = set_key(Config, values, "model.backbone.kind", "ligr")
    assert changed == {"model": {"backbone": {"kind": "ligr", "blocks": 2}}}
    assert values == {"model": {"backbone": {"kind": "sasrec", "blocks": 2, "norm": "post"}}}
    assert set_key(Config, {}, "data.synthetic.events", 5) == {"data": {"synthetic": {"events": 5}}}


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.backbone=ligr", "model.backbone is a section, not a value; set model.backbone.kind=ligr"),
        ("align.alignment=infonce", "align.alignment is a section, not a value; set align.alignment.kind=infonce"),
        ("training.loss=bce", "training.loss is a section, not a value; set training.loss.kind=bce"),
        ("model.backbone=", "model.backbone is a section, not a value"),
        ("model=5", "model is a section, not a value"),
        ("model.backbone.kind=bert", "model.backbone.kind=bert is none of 'sasrec', 'ligr', 'gru4rec', 'caser'"),
        ("model.backbone.window=3", "model.backbone.window belongs to kind caser, not sasrec"),
        ("training.loss.t=0.5", "training.loss.t belongs to kind gbce, not sampled_softmax"),
        (
            "align.alignment.temperature=1",
            "align.alignment.temperature belongs to kind infonce or fine_grained, not mk_mmd",
        ),
        ("model.backbone.blcks=3", "unknown key model.backbone.blcks; did you mean model.backbone.blocks?"),
    ],
)
@pytest.mark.parametrize("method", ["pad", "clip"])
def test_a_section_of_several_kinds_says_what_it_takes(tmp_path: Path, override: str, told: str, method: str) -> None:
    if method == "clip" and override.startswith("align.alignment.temperature"):
        assert load(tmp_path, override, method=method).align.alignment == InfoNceConfig(temperature=1)
    else:
        assert refused(tmp_path, override, method=method) == f"override {override}: {told}"


@pytest.mark.parametrize(
    ("values", "overrides", "wrong"),
    [
        # Of a key itself, of a section around it, of one below it.
        ({}, ["model.dmi=3", "model.dim=32"], "model.dmi=3"),
        ({}, ["model={dmi: 3}", "seed=8"], "model={dmi: 3}"),
        ({}, ["modle.dim=3", "seed=8"], "modle.dim=3"),
        ({}, ["model.dim=1", "model.dim=2"], "model.dim=2"),
        # Keys that do not fit one another: the last one that the error names.
        ({"model": {"dim": 16}}, ["model.backbone.heads=3", "model.dropout=0.1"], "model.backbone.heads=3"),
        ({"model": {"backbone": {"heads": 3}}}, ["model.dim=16", "seed=8"], "model.dim=16"),
        ({}, ["disentangle.freeze=[text]", "disentangle.epochs=3"], "disentangle.freeze=[text]"),
        ({}, ["training.loss.kind=softmx", "training.loss.in_batch=3"], "training.loss.kind=softmx"),
        ({}, ["disentangle.loss=ndcg", "training.loss.kind=bce", "out=o"], "training.loss.kind=bce"),
        # Of the file, whatever the overrides set beside it.
        ({"model": {"dropuot": 0.5}}, ["out=o", "model.dim=32"], None),
        ({"pretrain": {"dropout": 3}}, ["out=o", "pretrain.lr=0.1"], None),
        ({"disentangle": {"freeze": ["text"]}}, ["disentangle.epochs=3", "out=o"], None),
        ({"training": {"loss": {"kind": "softmx"}}}, ["training.loss.in_batch=3"], None),
    ],
)
def test_an_error_names_the_override_that_is_wrong(
    tmp_path: Path, values: dict[str, Any], overrides: list[str], wrong: str | None
) -> None:
    source = f"override {wrong}: " if wrong else f"{tmp_path}/run.yaml: "
    assert refused(tmp_path, *overrides, **values).startswith(source)


def test_errors_of_the_file_and_of_an_override_are_told_apart(tmp_path: Path) -> None:
    told = refused(tmp_path, "model.dmi=3", "seed=8", model={"dropuot": 0.5})
    assert told == (
        f"{tmp_path}/run.yaml: unknown key model.dropuot; did you mean model.dropout?; "
        "override model.dmi=3: unknown key model.dmi; did you mean model.dim?"
    )
