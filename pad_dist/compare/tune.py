"""`pad-dist tune`: search config values on validation alone; no trial ever ranks the test targets.

Each trial is a `pad-dist run` up to the stage whose validation hr@10 is to grow; what it shares with earlier trials,
such as the first stage, it takes from them. The study is kept in a journal, so that a killed search resumes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, cast

import optuna
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from pydantic import Field, model_validator

from pad_dist import storage
from pad_dist.compare.config import DATA
from pad_dist.compare.jobs import Job, shared_data
from pad_dist.compare.schedule import run_all
from pad_dist.config import Section
from pad_dist.config.load import load_config, parse_section, read_yaml
from pad_dist.errors import UserError
from pad_dist.stages.methods import resolve_stages

_FIXED = ("data", "dataset", "evaluation", "name", "out", "seed")
"""What trials share: on other data or users their validation could not be compared."""
_FAILED = "failed"
Value = bool | int | float | str


class Range(Section):
    """Numbers from `low` to `high`, both possible."""

    low: float
    high: float
    log: bool = False
    """Draw the logarithm evenly."""
    whole: bool = Field(False, alias="int")
    """Whole numbers alone."""

    @model_validator(mode="after")
    def _check(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low={self.low:g} must be below high={self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs low above 0, not {self.low:g}")
        if self.whole and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError("int needs whole numbers as low and high")
        return self

    def draw(self, trial: Trial, key: str) -> Value:
        """The value of a trial."""
        if self.whole:
            return trial.suggest_int(key, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(key, self.low, self.high, log=self.log)

    def ends(self) -> tuple[Value, ...]:
        """Values that the config must take."""
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)


class Choices(Section):
    """Some values."""

    choices: tuple[Value, ...] = Field(min_length=1)

    def draw(self, trial: Trial, key: str) -> Value:
        """The value of a trial."""
        return cast(Value, trial.suggest_categorical(key, self.choices))

    def ends(self) -> tuple[Value, ...]:
        """Values that the config must take."""
        return self.choices


Space = Mapping[str, Range | Choices]
"""What is searched for each config key."""


def load_space(path: str) -> Space:
    """Read a YAML of config key -> {low, high, log, int} or {choices}.

    Raises:
        UserError: missing file, bad YAML, no key, or one that is no range, no choices or not to be searched.
    """
    space: dict[str, Range | Choices] = {}
    for key, values in read_yaml(path).items():
        if str(key).partition(".")[0] in _FIXED:
            raise UserError(f"{path}: {key} cannot be searched: all trials share it")
        if not isinstance(values, dict):
            raise UserError(f"{path}: {key} must be {{low, high, log, int}} or {{choices}}")
        kind: type[Range | Choices] = Choices if "choices" in values else Range
        space[str(key)] = parse_section(kind, values, f"{path}: {key}")
    if not space:
        raise UserError(f"{path} names no config key to search")
    return space


def tune(
    config_path: str,
    space_path: str,
    *,
    trials: int,
    stage: str,
    out: str,
    overrides: list[str],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Do trials until `trials` have ended, failed ones included, and give the best, also left at `<out>/best.yaml`.

    Args:
        stage: whose validation hr@10 is to grow; "" for the last one.

    Raises:
        UserError: the config does not take what the space holds, the study at `out` is of another search, the data
            cannot be built, or no trial has succeeded.
        SystemExit: after a signal.
    """
    space = load_space(space_path)
    base = load_config(config_path, overrides, f"{out}/{DATA}")
    for key, section in space.items():
        for value in section.ends():
            load_config(config_path, [*overrides, _override(key, value)])
    data = Job(out, DATA, 0, config_path, tuple(overrides), ("--until", DATA), base)
    evaluated = [spec.name for spec in resolve_stages(base) if spec.evaluated]
    stage = stage or evaluated[-1]
    if stage not in evaluated:
        raise UserError(f"the run evaluates no stage {stage}: give --stage one of {', '.join(evaluated)}")
    search = {
        "config": base.model_dump(mode="json", exclude={"out": True, "dataset": True, "training": {"world_size"}}),
        "space": {key: section.model_dump(mode="json") for key, section in sorted(space.items())},
        "stage": stage,
    }
    study = _study(f"{out}/study.journal", search, base.seed)
    if not data.finished() and run_all([(data, {})], 1, say):
        raise UserError(f"the data could not be built, see {data.log}")
    options = ("--until", stage, "--reuse", f"{out}/trials")

    while len(_ended(study)) < trials:
        trial = study.ask()
        chosen = {key: section.draw(trial, key) for key, section in space.items()}
        trial_overrides = (*overrides, *(_override(key, value) for key, value in chosen.items()), *shared_data(base))
        # Named by its values: a trial that was killed resumes from its checkpoints.
        place = f"{out}/trials/{_digest(chosen)}"
        try:
            config = load_config(config_path, [*trial_overrides], place)
        except UserError as error:  # each value alone is one that the config takes, these together are not
            say(f"trial {trial.number}: {error}; {_shown(chosen)}")
            _fail(study, trial, str(error))
            continue
        job = Job(out, f"trial {trial.number}", base.seed, config_path, trial_overrides, options, config)
        if run_all([(job, {})], 1, say):
            _fail(study, trial, f"see {job.log}")
            continue
        value = float(storage.read_json(f"{place}/{stage}/result.json")["valid"]["hr@10"])
        study.tell(trial, value)
        say(f"trial {trial.number}: validation hr@10 {value:.4f}, best {study.best_value:.4f}; {_shown(chosen)}")
    return _best(study, stage, out)


def _study(path: str, search: dict[str, Any], seed: int) -> optuna.Study:
    """The study at this path, or a new one; what was running when it was killed is tried again first."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage.make_directory(path.rpartition("/")[0])
    kept = JournalStorage(JournalFileBackend(path))
    study = optuna.create_study(study_name="tune", storage=kept, direction="maximize", load_if_exists=True)
    if study.user_attrs.get("search", search) != search:
        raise UserError(f"{path} is of another config, space or stage: give another --out")
    study.set_user_attr("search", search)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params, skip_if_exists=False)
    # A sampler of the same seed would draw the first trials again.
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
    return study


def _fail(study: optuna.Study, trial: Trial, why: str) -> None:
    """End a trial that counts among those that were asked for, and is never the best."""
    trial.set_user_attr(_FAILED, why)
    study.tell(trial, state=TrialState.FAIL)


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that ran to their end, good or bad."""
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
    return [trial for trial in ended if trial.state == TrialState.COMPLETE or _FAILED in trial.user_attrs]


def _best(study: optuna.Study, stage: str, out: str) -> dict[str, Any]:
    ended = _ended(study)
    if all(trial.state == TrialState.FAIL for trial in ended):
        raise UserError(f"none of {len(ended)} trials has succeeded, the last one: {ended[-1].user_attrs[_FAILED]}")
    best = study.best_trial
    best_values = {
        "stage": stage,
        "valid hr@10": study.best_value,
        "trial": best.number,
        "trials": len(ended),
        "overrides": [_override(key, value) for key, value in sorted(best.params.items())],
    }
    storage.write_bytes(f"{out}/best.yaml", yaml.safe_dump(best_values, sort_keys=False).encode())
    return best_values


def _override(key: str, value: Value) -> str:
    return f"{key}={json.dumps(value)}"


def _digest(chosen: Mapping[str, Value]) -> str:
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]


def _shown(chosen: Mapping[str, Value]) -> str:
    texts = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in chosen.items()}
    return ", ".join(f"{key}={text}" for key, text in texts.items())
