"""The run that `continue_from` names: what of it a stage starts from, and whether it fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pad_dist import storage
from pad_dist.config import Config, DisentangleConfig, SparseConfig, StageName
from pad_dist.data.dataset import Dataset
from pad_dist.errors import UserError
from pad_dist.stages.trained_on import Record, described, record
from pad_dist.training.checkpoint import best_checkpoint, checkpoint_meta

_NOT_SHAPE = {"dropout", "projector_dropout", "row_dropout", "neighbours", "gate_init"}
_NOT_VECTORS = {"batch_size", "rows_per_shard"}
_NOT_PARTS = set(DisentangleConfig.model_fields) - {"experts", "gate", "mix"}
_NOT_ROWS = set(SparseConfig.model_fields) - {"hashed"}


@dataclass(frozen=True)
class Earlier:
    """A trained stage of an earlier run.

    Attributes:
        path: its checkpoint.
        fingerprint: of all that made it.
        dataset: what it was trained on.
        config: its settings, as plain values.
        beside: what it learned beside the recommendation loss.
    """

    path: str
    fingerprint: str
    dataset: Record
    config: dict[str, Any]
    beside: str | None

    @property
    def items(self) -> int:
        """Items that its tables have rows for."""
        return int(self.dataset["item_map"][-1][0])


def earlier(config: Config, stage: StageName) -> Earlier:
    """The same stage of the run that `config.continue_from` names.

    Raises:
        UserError: that run has not trained it to its end.
    """
    result = f"{config.continue_from}/{stage}/result.json"
    if not storage.exists(result):
        raise UserError(
            f"continue_from={config.continue_from} has no {stage} stage that was trained to its end: {_OUT}"
        )
    root = storage.read_json(result)["checkpoint_root"] or config.continue_from
    path = best_checkpoint(f"{root}/{stage}", f"launchers/{stage}.py")
    meta = checkpoint_meta(path)
    if not isinstance(meta["dataset"], dict):
        raise UserError(f"{path} does not tell the item map that it was trained on: {_OUT}")
    return Earlier(path, meta["fingerprint"], meta["dataset"], meta["config"], meta["made_from"]["parts"]["beside"])


def check_fits(config: Config, stage: StageName, dataset: Dataset, *, text: bool, beside: str | None) -> None:
    """Refuse an earlier run of another model, or on items that this dataset did not grow from.

    Args:
        text: whether the stage's weights were learned on text vectors.
        beside: what the stage learns beside the recommendation loss.

    Raises:
        UserError: naming both item maps, or the first setting that differs.
    """
    source = earlier(config, stage)
    last, now = source.dataset["item_map"][-1], record(dataset)
    if last not in dataset.item_map:
        raise UserError(
            f"{source.path} knows the item map {_items(last)} of {described(source.dataset)}, which "
            f"{described(now)} with the item map {_items(dataset.item_map[-1])} did not grow from: continue on a later "
            f"version of the same dataset, or {_OUT}"
        )
    if source.beside != beside:
        raise UserError(
            f"{source.path} was trained with method={source.config['method']}, this run has method={config.method}, "
            f"whose {stage} stage is another: set method={source.config['method']}, or {_OUT}"
        )
    sections = {"model": _NOT_SHAPE, "sparse": _NOT_ROWS, **({"text": _NOT_VECTORS} if text else {})}
    if stage == "disentangle":
        sections[stage] = _NOT_PARTS
    for section, ignored in sections.items():
        wanted: dict[str, Any] = getattr(config, section).model_dump(mode="json", exclude=ignored)
        for name, value in wanted.items():
            before = source.config[section].get(name)
            if before != value:
                raise UserError(
                    f"{source.path} was trained with {section}.{name}={before}, this run has {value}: "
                    f"set {section}.{name}={before}, or {_OUT}"
                )


def _items(entry: list[Any]) -> str:
    return f"{entry[0]} items ({entry[1][:12]})"


_OUT = "name another run in continue_from, or none to train from the beginning"
