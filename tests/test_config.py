import ast
import re
from itertools import pairwise
from pathlib import Path

import pytest

from pad_dist import config_data
from pad_dist.config import Config
from pad_dist.config_file import load_config, parse_config
from pad_dist.errors import UserError
from tests.support.refusal import refusal
from tests.support.stages import STAGES

ROOT = Path(__file__).parents[1]
# Comparisons and spaces are of another kind: tests/compare, tests/test_tune.py.
CONFIGS = [
    path for path in sorted((ROOT / "configs").glob("*.yaml")) if not path.stem.startswith(("compare", "space_"))
]
SECTIONS = tuple(ROOT / f"pad_dist/{name}.py" for name in ("config", "config_data", "config_model", "config_stages"))


def classes(file: Path) -> list[ast.ClassDef]:
    """The sections that a module declares."""
    return [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)]


def keys(section: ast.ClassDef) -> list[str]:
    return [node.target.id for node in section.body if isinstance(node, ast.AnnAssign)]  # type: ignore[union-attr]


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
    ],
)
def test_an_unknown_key_names_the_nearest_valid_one(values: dict[str, object], wrong: str, nearest: str) -> None:
    assert refusal(values) == f"unknown key {wrong}; did you mean {nearest}?"


def test_a_key_like_no_other_gets_no_guess() -> None:
    assert refusal({"zzzz": 1}) == "unknown key zzzz"


def test_every_mistake_is_named_at_once() -> None:
    message = refusal({"seed": "seven", "model": {"dim": 2, "blcks": 1}})
    assert "seed: " in message
    assert "model.dim: " in message
    assert "did you mean model.blocks?" in message


def test_fp16_is_refused_with_the_precision_to_use() -> None:
    message = refusal({"training": {"precision": "fp16"}})
    assert message.startswith("training.precision=fp16")
    assert "use bf16 or fp32" in message


def test_gradient_accumulation_is_refused_with_the_setting_to_raise() -> None:
    message = refusal({"training": {"gradient_accumulation": 4}})
    assert message.startswith("training.gradient_accumulation=4")
    assert "raise training.batch_size" in message


def test_adamw_is_for_the_torch_backend_alone() -> None:
    assert "use rowwise_adagrad, or sparse.backend=torch" in refusal({"sparse": {"optimizer": "adamw"}})
    config = parse_config({"name": "x", "sparse": {"optimizer": "adamw", "backend": "torch"}}, "c")
    assert config.sparse.optimizer == "adamw"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"data": {"max_history": 22}}, "set data.max_history and data.keep_last together"),
        ({"data": {"min_rating": 4}}, "data.min_rating needs data.columns.rating"),
        ({"model": {"dim": 10, "heads": 3}}, "model.heads must divide model.dim"),
        ({"training": {"loss": {"kind": "gbce", "in_batch": 8}}}, "in_batch and log_q belong to kind=sampled_softmax"),
        ({"training": {"loss": {"kind": "softmax", "log_q": True}}}, "with softmax leave them 0 and false"),
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
    align = {"gamma": 0.3, "kernel": "linear", "samples": "unique", "item_share": 0.5}
    values = {"name": "x", "align": align, "text": {"transform": "none"}}
    clip = parse_config(values | {"method": "clip"}, "c")
    assert (clip.align.alignment, clip.align.item_share, clip.align.gamma) == ("infonce", 0.5, 0.3)
    assert clip.text.transform == "none"
    whitened = parse_config(values | {"method": "whitenrec"}, "c")
    assert whitened.text.transform == "whiten" and whitened.align == parse_config(values, "c").align
    for config in (clip, whitened):
        assert Config.model_validate(config.model_dump(mode="json")) == config
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


def test_every_key_of_data_and_text_says_what_it_is() -> None:
    bare = [
        f"{section.name}.{node.target.id}"  # type: ignore[union-attr]
        for section in classes(Path(config_data.__file__))
        for node, after in pairwise([*section.body, ast.Pass()])
        if isinstance(node, ast.AnnAssign)
        and not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant))
    ]
    assert bare == []


def test_every_key_is_read_by_the_code() -> None:
    files = [file for package in ("pad_dist", "spark_jobs") for file in (ROOT / package).rglob("*.py")]
    code = "\n".join(file.read_text() for file in files if file not in SECTIONS)
    read = {*re.findall(r"\.(\w+)\b", code), *re.findall(r'"(\w+)"', code)}
    known = {key for file in SECTIONS for section in classes(file) for key in keys(section)}
    assert known - read == set()
    assert "item_share" in known and "time_format" in known


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("loss", ["{kind: bce}", "{kind: gbce}", "{kind: sampled_softmax, in_batch: 64}"])
def test_the_loss_of_a_method_without_a_mixture_is_its_own_choice(path: Path, loss: str) -> None:
    for method in ("id", "rlmrec_con"):
        load_config(str(path), [f"method={method}", f"training.loss={loss}"])


def test_heads_are_asked_of_backbones_that_have_them_alone() -> None:
    for backbone in ("gru4rec", "caser"):
        parse_config({"name": "x", "model": {"heads": 3, "backbone": backbone}}, "c")
    for backbone in ("sasrec", "ligr"):
        assert "model.heads must divide model.dim" in refusal({"model": {"heads": 3, "backbone": backbone}})
