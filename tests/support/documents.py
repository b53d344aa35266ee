"""What a document says that is not so: commands, options, files, links, config keys, functions."""

import ast
import re
import shlex
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import typer

from pad_dist.cli.main import app
from pad_dist.compare.config import load_comparison
from pad_dist.compare.tune import load_space
from pad_dist.config import Config
from pad_dist.config.keys import KIND, walk
from pad_dist.config.load import load_config

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "k8s/README.md")]
DOCUMENTS += sorted(ROOT.glob("docs/**/*.md"))
PACKAGES = ("pad_dist", "spark_jobs", "launchers")
FILE_ENDINGS = ("json", "jsonl", "yaml", "txt", "toml", "py", "md", "gz", "safetensors")
# Stand for a place of the reader's: a run's directory, a dataset, a stage; .venv is made by `make setup`.
PLACES = ("DIR/", "DATASET/", "STAGE/", "/", "../", ".venv/")

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def problems(text: str, folder: Path) -> list[str]:
    """What a document says that is not so; `folder` is where its relative links start.

    A YAML fence is an example config, named by its comment in the first line; commands may use it.
    """
    wrong: list[str] = []
    with TemporaryDirectory() as place:
        examples = Path(place)
        for kind, code in FENCE.findall(text):
            if kind == "yaml":
                example = examples / code.partition("\n")[0].removeprefix("# ")
                example.write_text(code)
                wrong += _refused(load_config, str(example))
            elif kind == "bash":
                for line in code.replace("\\\n", " ").splitlines():
                    if words := shlex.split(line, comments=True):
                        wrong += [f"{line}: {problem}" for problem in _command_problems(words, examples)]
            elif kind != "diff":  # those are applied by tests/test_extending.py
                names = re.findall(r"[\w/]+\.py\b", code)
                wrong += [f"no {name}" for name in names if not any(file.match(name) for file in _sources())]
    prose = FENCE.sub("", text)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        wrong += _link_problems(target, text, folder)
    for span in re.findall(r"`([^`\n]+)`", prose):
        wrong += [f"`{span}`: {problem}" for problem in _span_problems(span)]
    return wrong


def _refused(check: Callable[..., Any], *arguments: Any) -> list[str]:
    try:
        check(*arguments)
    except (Exception, SystemExit) as error:  # argparse exits, typer and the config raise
        return [f"{type(error).__name__}: {error}"]
    return []


def _command_problems(words: list[str], examples: Path) -> list[str]:
    program, *arguments = words
    match program.removeprefix(".venv/bin/"):
        case "make":
            targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
            return [f"no make target {word}" for word in arguments if "=" not in word and word not in targets]
        case "pip":
            files = [value for option, value in pairwise(arguments) if option == "-r"]
            return [f"no {file}" for file in files if not (ROOT / file).is_file()]
        case "pad-dist":
            command, rest = _pad_dist(arguments)
            if command is None:
                return [f"no pad-dist command {' '.join(arguments)}"]
            # make_context parses the arguments and runs nothing.
            if wrong := _refused(command.make_context, program, [*rest]):
                return wrong
            if "--space" in rest:
                wrong = _refused(load_space, str(ROOT / rest[rest.index("--space") + 1]))
            if command.name == "compare":
                return _refused(load_comparison, str(ROOT / rest[rest.index("--config") + 1]))
            return wrong or _config_problems(rest, examples)
        case "deepspeed":
            from deepspeed.launcher.runner import parse_args

            return _launch_problems(parse_args, ("user_script", "user_args"), arguments, examples)
        case "torchrun":
            from torch.distributed.run import parse_args

            return _launch_problems(parse_args, ("training_script", "training_script_args"), arguments, examples)
        case "spark-submit":
            place = next(number for number, word in enumerate(arguments) if word.endswith(".py"))
            return _script_problems(arguments[place], arguments[place + 1 :], examples)
        case "python" if arguments[:2] == ["-m", "pytest"]:
            return [f"no {word}" for word in arguments[2:] if not (ROOT / word).exists()]
        case "python":
            module = arguments[0] == "-m"
            script = arguments[1].replace(".", "/") + ".py" if module else arguments[0]
            return _script_problems(script, arguments[1 + module :], examples)
    return ["this test knows no such command: teach it"]


def _pad_dist(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the words begin with (None: there is none such) and its arguments."""
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        name, *words = words
        command = command.commands.get(name)
    return command, words


def _launch_problems(
    parse: Callable[[list[str]], Any], names: tuple[str, str], arguments: list[str], examples: Path
) -> list[str]:
    """The launcher's own parser reads its part; the rest is the script's."""
    if wrong := _refused(parse, arguments):
        return wrong
    parsed = vars(parse(arguments))
    return _script_problems(parsed[names[0]], parsed[names[1]], examples)


def _script_problems(script: str, arguments: list[str], examples: Path) -> list[str]:
    file = ROOT / script
    if not file.is_file():
        return [f"no script {script}"]
    if script == "launchers/plan.py":
        return _command_problems(["pad-dist", "plan", *arguments], examples)
    # The other launchers and the Spark jobs share one command line.
    shared = file.parent.name in ("launchers", "spark_jobs")
    source = (ROOT / "pad_dist/config/load.py" if shared else file).read_text()
    options = set(re.findall(r'add_argument\("(--[\w-]+)"', source))
    wrong = [f"{script} has no option {word}" for word in arguments if word.startswith("--") and word not in options]
    return wrong or _config_problems(arguments, examples)


def _config_problems(arguments: list[str], examples: Path) -> list[str]:
    """The config is an example of the document or in the repository, and takes the overrides."""
    if "--config" not in arguments:
        return []
    path = arguments[arguments.index("--config") + 1]
    file = next((folder / path for folder in (examples, ROOT) if (folder / path).is_file()), path)
    return _refused(load_config, str(file), [word for word in arguments if "=" in word])


def _link_problems(target: str, text: str, folder: Path) -> list[str]:
    if "://" in target:
        return []
    path, _, anchor = target.partition("#")
    file = folder / path
    if path and not file.exists():
        return [f"link to {target}: no such file"]
    if path and file.is_dir():
        return []
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", file.read_text() if path else text), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return [f"link to {target}: no such heading"] if anchor and anchor not in anchors else []


def _span_problems(span: str) -> list[str]:
    """Code in a sentence: a path, a function, a config key or a command."""
    if span.startswith("make "):
        return _command_problems(span.split(), ROOT)
    if span.startswith("pad-dist "):
        return ["no such pad-dist command"] if _pad_dist(span.split()[1:])[0] is None else []
    if re.fullmatch(r"\w+\(\)", span):
        return [] if span[:-2] in _defined() else ["no such function"]
    if re.fullmatch(r"[\w.-]*/[\w./-]*", span):
        return [] if span.startswith(PLACES) or (ROOT / span).exists() else ["no such path"]
    dotted, _, value = span.partition("=")
    if re.fullmatch(r"[a-z_]\w*(\.\w+)+", dotted) and dotted != "section.key":
        if dotted.split(".")[0] in PACKAGES:
            return [] if (ROOT / f"{dotted.replace('.', '/')}.py").is_file() else ["no such module"]
        if dotted.endswith(FILE_ENDINGS) or dotted.startswith("spark."):  # Spark's own settings
            return []
        return _key_problems(dotted, value)
    return []


def _key_problems(key: str, value: str) -> list[str]:
    section, _, name = key.rpartition(".")
    kinds = [known.kind for known in walk(Config) if known.name == key]
    if not kinds:
        return ["no such config key"]
    if not value:
        return []
    # A key of one kind of a section is no mistake where the presets have another kind.
    of_kinds = [[f"{section}.{KIND}={kind}"] if kind and name != KIND else [] for kind in kinds]
    # A value may fit only the paper's preset, or that with a trained text expert, or only the one that goes beyond it.
    paper, beyond = (str(ROOT / "configs" / name) for name in ("paper_prime_pantry.yaml", "prime_pantry.yaml"))
    fits = [(paper, []), (paper, ["disentangle.trained_text=true"]), (beyond, [])]
    wrong = [
        _refused(load_config, preset, [*beside, *of_kind, f"{key}={value}"])
        for preset, beside in fits
        for of_kind in of_kinds
    ]
    return wrong[0] if all(wrong) else []


@cache
def _sources() -> list[Path]:
    return [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]


@cache
def _defined() -> set[str]:
    """Names of all functions and classes of the code."""
    nodes = [node for file in _sources() for node in ast.walk(ast.parse(file.read_text()))]
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
