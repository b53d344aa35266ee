"""The run that `warm_start` names: what of it a stage starts from, and whether it fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pad_dist import storage
from pad_dist.checkpoint.files import best_checkpoint, checkpoint_meta
from pad_dist.config import EXPERTS
from pad_dist.dataset.reader import Dataset
from pad_dist.errors import UserError
from pad_dist.stages.differences import flatten
from pad_dist.stages.spec import StageSpec
from pad_dist.stages.trained_on import Record, described, record

_NOT_SHAPE = {"dropout", "projector.dropout", "aligned.id_dropout"}
_WITHOUT_WEIGHTS = {name for expert in EXPERTS.values() if not expert.is_trained for name in expert.model_keys}
_NOT_VECTORS = {"batch_size", "rows_per_shard"}
_MIXED = ("experts", "gate", "mix")
"""Keys of a mixture that its weights depend on."""


@dataclass(frozen=True)
class WarmStart:
    """A trained stage of an earlier run.

    Attributes:
        path: its checkpoint.
        fingerprint: of all that made it.
        dataset: what it was trained on.
        config: its settings, as plain values.
        auxiliary: name of its auxiliary loss.
        evaluated: see `StageSpec`.
    """

    path: str
    fingerprint: str
    dataset: Record
    config: dict[str, Any]
    auxiliary: str | None
    evaluated: bool

    @property
    def items(self) -> int:
        """Items that its tables have rows for."""
        return int(self.dataset["item_map"][-1][0])


def find_warm_start(spec: StageSpec) -> WarmStart:
    """The same stage of the run that `config.warm_start` names.

    Raises:
        UserError: that run has not trained it to its end.
    """
    run = spec.config.warm_start
    result = f"{run}/{spec.name}/result.json"
    if not storage.exists(result):
        raise UserError(f"warm_start={run} has no {spec.name} stage that was trained to its end: {_OUT}")
    root = storage.read_json(result)["checkpoint_root"] or run
    path = best_checkpoint(f"{root}/{spec.name}", f"launchers/{spec.name}.py")
    meta = checkpoint_meta(path)
    if not isinstance(meta["dataset"], dict):
        raise UserError(f"{path} does not tell the item map that it was trained on: {_OUT}")
    stage = meta["made_from"]["stage"]
    return WarmStart(path, meta["fingerprint"], meta["dataset"], meta["config"], stage["auxiliary"], stage["evaluated"])


def check_fits(spec: StageSpec, dataset: Dataset) -> None:
    """Refuse an earlier run of another model, or on items that this dataset did not grow from.

    Raises:
        UserError: naming both item maps, or the first setting that differs.
    """
    config, source = spec.config, find_warm_start(spec)
    last, now = source.dataset["item_map"][-1], record(dataset)
    if last not in dataset.item_map:
        raise UserError(
            f"{source.path} knows the item map {_items(last)} of {described(source.dataset)}, which "
            f"{described(now)} with the item map {_items(dataset.item_map[-1])} did not grow from: warm-start on a "
            f"later version of the same dataset, or {_OUT}"
        )
    if (source.auxiliary, source.evaluated) != (spec.auxiliary_name, spec.evaluated):
        raise UserError(
            f"{source.path} was trained with method={source.config['method']}, this run has method={config.method}, "
            f"whose {spec.name} stage is another: set method={source.config['method']}, or {_OUT}"
        )
    # An expert that was added to pad_dist since then has a section that the earlier run does not know.
    shaping = source.config["model"].keys() - _WITHOUT_WEIGHTS
    model = _settings(config.model, _NOT_SHAPE)
    wanted = {f"model.{key}": value for key, value in model.items() if key.partition(".")[0] in shaping}
    wanted["sparse.hashed"] = config.sparse.model_dump(mode="json")["hashed"]
    if spec.needs_text:
        wanted |= {f"text.{key}": value for key, value in _settings(config.text, _NOT_VECTORS).items()}
    if spec.mixture:
        mixed = spec.mixture.model_dump(mode="json", include=set(_MIXED))
        wanted |= {f"{spec.name}.{key}": mixed[key] for key in _MIXED}
    before = flatten(source.config) | {"sparse.hashed": source.config["sparse"]["hashed"]}  # a section, or none
    for key, value in wanted.items():
        if before.get(key) != value:
            raise UserError(
                f"{source.path} was trained with {key}={before.get(key)}, this run has {value}: "
                f"set {key}={before.get(key)}, or {_OUT}"
            )


def _settings(section: Any, ignored: set[str]) -> dict[str, Any]:
    flat = flatten(section.model_dump(mode="json"))
    return {key: value for key, value in flat.items() if key not in ignored}


def _items(entry: list[Any]) -> str:
    return f"{entry[0]} items ({entry[1][:12]})"


_OUT = "name another run in warm_start, or none to train from the beginning"
