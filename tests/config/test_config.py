import ast
import re
from pathlib import Path

import pytest

from pad_dist.config import Config, FineGrainedConfig, InfoNceConfig
from pad_dist.config.keys import walk
from pad_dist.config.load import load_config, parse_config
from pad_dist.errors import UserError
from tests.support.refusal import refusal
from tests.support.stages import STAGES

ROOT = Path(__file__).parents[2]
# Comparisons and spaces are of another kind: tests/compare, tests/compare/test_tune.py.
CONFIGS = [
    path for path in sorted((ROOT / "configs").glob("*.yaml")) if not path.stem.startswith(("compare", "space_"))
]
SECTIONS = sorted((ROOT / "pad_dist/config").glob("*.py"))
KINDS = ("training.loss", "model.backbone", "align.alignment")
"""Sections of several kinds."""


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return str(path)


def test_defaults_are_a_valid_run_that_writes_under_its_name() -> None:
    config = parse_config({"name": "x"}, "run.yaml")
    assert (config.out, config.dataset) == ("runs/x", "runs/x/dataset")


def test_the_dataset_follows_out_unless_it_is_given() -> None:
    assert parse_config({"name": "x", "out": "o/p"}, "c").dataset == "o/p/dataset"
    assert parse_config({"name": "x", "out": "o", "dataset": "s3://b/d"}, "c").dataset == "s3://b/d"


def test_out_at_a_url_is_refused_since_logs_are_plain_files() -> None:
    with pytest.raises(UserError, match=r"out: s3://b/o is a URL, logs need a folder"):
        parse_config({"name": "x", "out": "s3://b/o"}, "c")


@pytest.mark.parametrize(
    ("values", "wrong", "nearest"),
    [
        ({"modle": {}}, "modle", "model"),
        ({"model": {"dmi": 8}}, "model.dmi", "model.dim"),
        ({"training": {"loss": {"negative": 3}}}, "training.loss.negative", "training.loss.negatives"),
        ({"align": {"gama": 1}}, "align.gama", "align.gamma"),
        ({"data": {"columns": {"items": "x"}}}, "data.columns.items", "data.columns.item"),
        # The right word in the wrong section.
        ({"training": {"negatives": 3}}, "training.negatives", "training.loss.negatives"),
        ({"lr": 3}, "lr", "pretrain.lr"),
        ({"model": {"heads": 2}}, "model.heads", "model.backbone.heads"),
    ],
)
def test_an_unknown_key_names_the_nearest_valid_one(values: dict[str, object], wrong: str, nearest: str) -> None:
    assert refusal(values) == f"unknown key {wrong}; did you mean {nearest}?"


def test_a_key_like_no_other_gets_no_guess() -> None:
    assert refusal({"zzzz": 1}) == "unknown key zzzz"


def test_every_mistake_is_named_at_once() -> None:
    message = refusal({"seed": "seven", "model": {"dim": 2, "backbone": {"blcks": 1}}})
    assert "seed: " in message
    assert "model.dim: " in message
    assert "did you mean model.backbone.blocks?" in message


def test_fp16_is_refused_with_the_precision_to_use() -> None:
    message = refusal({"training": {"precision": "fp16"}})
    assert message.startswith("training.precision=fp16")
    assert "use bf16 or fp32" in message


def test_gradient_accumulation_is_no_key_since_tables_step_in_every_backward() -> None:
    assert refusal({"training": {"gradient_accumulation": 1}}).startswith("unknown key training.gradient_accumulation")


def test_adamw_is_for_the_torch_backend_alone() -> None:
    assert "use rowwise_adagrad, or sparse.backend=torch" in refusal({"sparse": {"optimizer": "adamw"}})
    config = parse_config({"name": "x", "sparse": {"optimizer": "adamw", "backend": "torch"}}, "c")
    assert config.sparse.optimizer == "adamw"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"data": {"max_history": 22}}, "set data.max_history and data.keep_last together"),
        ({"data": {"min_rating": 4}}, "data.min_rating needs data.columns.rating"),
        ({"model": {"dim": 10, "backbone": {"heads": 3}}}, "model.backbone.heads=3 must divide model.dim=10"),
    ],
)
def test_settings_that_need_one_another(values: dict[str, object], says: str) -> None:
    assert says in refusal(values)


def test_overrides_reach_any_depth_and_win_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\nmodel: {dim: 64}\n")
    overrides = [
        "model.dim=32",
        "training.loss.kind=bce",
        "pretrain.lr=1e-4",
        "data.min_rating=",
        "disentangle.freeze=[id]",
    ]
    config = load_config(path, overrides)
    assert config.model.dim == 32
    assert config.training.loss.kind == "bce"
    assert config.pretrain.lr == 1e-4
    assert config.data.min_rating is None
    assert config.disentangle.freeze == ("id",)


def test_an_override_value_may_hold_equals_signs(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "name: x\n"), ["data.interactions=s3://b/day=1/e.csv"])
    assert config.data.interactions == "s3://b/day=1/e.csv"


def test_out_of_the_command_line_wins_and_moves_the_dataset(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "name: x\nout: a\n"), ["out=b"], out="c")
    assert (config.out, config.dataset) == ("c", "c/dataset")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.dim", "is not of the form section.key=value"),
        ("=3", "is not of the form section.key=value"),
        ("seed.x=3", "seed is a value, not a section"),
        ("seed=[", "'[' is not a YAML value"),
        ("model.dmi=3", "did you mean model.dim?"),
    ],
)
def test_a_bad_override_is_one_clear_line(tmp_path: Path, override: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(write(tmp_path, "name: x\nseed: 3\n"), [override])
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"name: [", "is not valid YAML"),
        (b"name: \xff\xfe\n", "is not valid YAML"),
        (b"- a\n", "must hold a mapping of sections, not list"),
        (b"", "name: Field required"),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load_config(str(path))
    assert str(path) in str(error.value)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml does not exist"):
        load_config(str(tmp_path / "nowhere.yaml"))


def test_a_config_survives_its_own_dump() -> None:
    config = parse_config({"name": "x", "disentangle": {"freeze": ["id"]}}, "c")
    assert Config.model_validate(config.model_dump(mode="json")) == config


def test_a_method_sets_its_keys_whatever_the_section_says() -> None:
    alignment = {"kind": "mk_mmd", "kernel": "linear", "samples": "unique"}
    align = {"gamma": 0.3, "alignment": alignment, "item_share": 0.5}
    values = {"name": "x", "align": align, "text": {"transform": "none"}}
    clip = parse_config(values | {"method": "clip"}, "c")
    assert (clip.align.alignment, clip.align.item_share, clip.align.gamma) == (InfoNceConfig(), 0.5, 0.3)
    assert clip.text.transform == "none"
    ctrl = parse_config(values | {"method": "ctrl"}, "c")
    assert (ctrl.align.alignment, ctrl.align.item_share) == (FineGrainedConfig(), 0.5)
    assert not ctrl.align.anchor and ctrl.align.gamma == 1
    whitened = parse_config(values | {"method": "whitenrec"}, "c")
    assert whitened.text.transform == "whiten" and whitened.align == parse_config(values, "c").align
    for config in (clip, ctrl, whitened):
        assert Config.model_validate(config.model_dump(mode="json")) == config
    for method, alignment in (("clip", "infonce"), ("ctrl", "fine_grained")):
        own = {"name": "x", "method": method, "align": {"alignment": {"kind": alignment, "temperature": 0.3}}}
        assert parse_config(own, "c").align.alignment.temperature == 0.3
    with pytest.raises(UserError, match=r"align\.gama; did you mean align\.gamma"):
        parse_config({"name": "x", "method": "clip", "align": {"gama": 1}}, "c")


def test_the_gate_alone_may_learn() -> None:
    freeze = {"freeze": ["id", "aligned", "text"], "trained_text": True}
    assert parse_config({"name": "x", "disentangle": freeze}, "c").disentangle.freeze == ("id", "aligned", "text")
    two = {"experts": ["id", "aligned"], "freeze": ["id", "aligned"]}
    assert parse_config({"name": "x", "disentangle": two}, "c").disentangle.freeze == ("id", "aligned")


def test_each_stage_has_its_own_section() -> None:
    config = parse_config({"name": "x", **{name: {"epochs": 3 + i} for i, name in enumerate(STAGES)}}, "c")
    assert [config.stage(name).epochs for name in STAGES] == [3, 4, 5]


def test_the_documented_configs_are_there() -> None:
    ours = {"demo", "prime_pantry", "beauty", "sports", "paper_prime_pantry"}
    public = {"amazon2014", "amazon2018", "amazon2023", "movielens_1m", "movielens_20m", "mind"}
    assert ours | public <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_parses_under_its_own_name(path: Path) -> None:
    assert load_config(str(path)).name == path.stem


def test_every_key_says_what_it_is() -> None:
    assert [key.name for key in walk(Config) if not key.field.description] == []


def test_every_key_is_read_by_the_code() -> None:
    files = [file for package in ("pad_dist", "spark_jobs") for file in (ROOT / package).rglob("*.py")]
    code = "\n".join(file.read_text() for file in files if file not in SECTIONS)
    read = {*re.findall(r"\.(\w+)\b", code), *re.findall(r'"(\w+)"', code)}
    read |= {name for file in SECTIONS for name in derived_from(file)}
    known = {key.name.rpartition(".")[2] for key in walk(Config)}
    assert known - read == set()
    assert "item_share" in known and "time_format" in known


def derived_from(file: Path) -> set[str]:
    """Names that the methods of a module of sections read, other than to refuse a value."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    methods = [node for node in nodes if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    return {node.attr for method in methods for node in ast.walk(method) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("loss", ["{kind: bce}", "{kind: gbce}", "{kind: sampled_softmax, in_batch: 64}"])
def test_the_loss_of_a_method_without_a_mixture_is_its_own_choice(path: Path, loss: str) -> None:
    for method in ("id", "rlmrec_con"):
        load_config(str(path), [f"method={method}", f"training.loss={loss}"])


def test_only_backbones_with_heads_have_the_key() -> None:
    for kind in ("gru4rec", "caser"):
        told = refusal({"model": {"backbone": {"kind": kind, "heads": 3}}})
        assert told == f"model.backbone.heads belongs to kind sasrec or ligr, not {kind}"
        parse_config({"name": "x", "model": {"backbone": {"kind": kind}}}, "c")
    for kind in ("sasrec", "ligr"):
        told = refusal({"model": {"backbone": {"kind": kind, "heads": 3}}})
        assert "model.backbone.heads=3 must divide model.dim=128" in told


def test_sections_of_several_kinds_take_one_where_none_is_named() -> None:
    several = [key for key in walk(Config) if len(key.sections) > 1]
    assert {key.name for key in several} == set(KINDS)
    config = parse_config({"name": "x", "training": {"loss": {}}, "model": {"backbone": {}}, "align": {}}, "c")
    kinds = (config.training.loss.kind, config.model.backbone.kind, config.align.alignment.kind)
    assert kinds == ("sampled_softmax", "sasrec", "mk_mmd")
