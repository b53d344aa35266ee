"""What each stage is made of, and what it takes over from its predecessors."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any, Literal

from pad_dist import storage
from pad_dist.config import Config, ExpertName, MethodName, StageName
from pad_dist.data.dataset import Dataset
from pad_dist.data.text_table import text_manifest
from pad_dist.errors import UserError
from pad_dist.model.gate import GateName
from pad_dist.model.heads import HeadName
from pad_dist.sparse.tables import TableSpec
from pad_dist.stages.differences import differences
from pad_dist.stages.earlier import check_fits, earlier
from pad_dist.stages.trained_on import other_version

Beside = Literal["align", "ctrl", "rlmrec_con", "rlmrec_gen"]
"""What is learned beside the recommendation loss, by the section that says how."""


@dataclass(frozen=True)
class Parts:
    """What a stage is made of.

    `inherits` lists (stage, expert there, expert here): encoder, and the table of the
    same name as the expert, are copied from that stage's checkpoint (METHOD, phases 2
    and 3); an expert that is not named starts at random.

    Attributes:
        gate: what weighs the experts, if anything.
        log_mix: whether it is their log-probabilities that are weighed, not their logits.
        recommends: whether the recommendation loss is learned from.
        beside: what else is.
        text_rows: whether the table starts from the texts instead of at random.
        ranks: whether the stage can rank, so that validation selects its checkpoint; else the last one is kept.
    """

    experts: tuple[ExpertName, ...]
    tables: tuple[ExpertName, ...]
    inherits: tuple[tuple[StageName, ExpertName, ExpertName], ...] = ()
    gate: GateName | None = None
    log_mix: bool = False
    recommends: bool = True
    beside: Beside | None = None
    text_rows: bool = False
    ranks: bool = True

    @property
    def has_text(self) -> bool:
        """Whether the model reads text vectors; of any two experts one does."""
        return self.experts != ("id",) or self.beside is not None

    @property
    def head(self) -> HeadName | None:
        """What of the dense module is learned with beside the experts."""
        return self.beside if self.beside in ("rlmrec_con", "rlmrec_gen") else None


_ID = Parts(("id",), ("id",))
_TEXT = Parts(("text",), ())
_ALIGNED = Parts(("aligned",), ("aligned",), (("pretrain", "id", "aligned"),), beside="align")
_MIXTURE = Parts(
    ("id", "aligned", "text", "neighbours"),
    ("id", "aligned"),
    (("pretrain", "id", "id"), ("align", "aligned", "aligned"), ("pretrain_text", "text", "text")),
    gate="frequency",
)

METHODS: dict[MethodName, dict[StageName, Parts]] = {
    "id": {"pretrain": _ID},
    "text": {"pretrain_text": _TEXT},
    "whitenrec": {"pretrain_text": _TEXT},
    "llm_init": {"pretrain": replace(_ID, text_rows=True)},
    "clip": {"pretrain": _ID, "align": _ALIGNED},
    "ctrl": {
        "align": replace(_ALIGNED, inherits=(), recommends=False, beside="ctrl", ranks=False),
        "pretrain": replace(_ID, inherits=(("align", "aligned", "id"),)),
    },
    "rlmrec_con": {"pretrain": replace(_ID, beside="rlmrec_con")},
    "rlmrec_gen": {"pretrain": replace(_ID, beside="rlmrec_gen")},
    "pad": {"pretrain": _ID, "align": _ALIGNED, "pretrain_text": _TEXT, "disentangle": _MIXTURE},
}
"""The stages of each method in their order; `stages` and `parts` give what a config makes of them."""


def stages(config: Config) -> tuple[StageName, ...]:
    """The stages of a run, in their order."""
    without = set() if config.method != "pad" or config.disentangle.trained_text else {"pretrain_text"}
    return tuple(stage for stage in METHODS[config.method] if stage not in without)


def ranked_stages(config: Config) -> tuple[StageName, ...]:
    """Those that are evaluated."""
    return tuple(stage for stage in stages(config) if parts(config, stage).ranks)


def parts(config: Config, stage: StageName) -> Parts:
    """What a stage is made of: the last one of the experts that are chosen.

    Raises:
        UserError: the method has no such stage.
    """
    if stage not in stages(config):
        raise UserError(f"method={config.method} has no {stage} stage, it has {', '.join(stages(config))}")
    whole = METHODS[config.method][stage]
    if stage == "align":
        return replace(whole, recommends=whole.recommends and config.align.anchor)
    if stage != "disentangle":
        return whole
    chosen, before = config.disentangle.experts, stages(config)
    return replace(
        whole,
        experts=tuple(name for name in whole.experts if name in chosen),
        tables=tuple(name for name in whole.tables if name in chosen),
        inherits=tuple(entry for entry in whole.inherits if entry[0] in before and entry[2] in chosen),
        gate=None if config.disentangle.gate == "none" else config.disentangle.gate,
        log_mix=config.disentangle.mix == "log_probabilities",
    )


def main_scorer(config: Config, stage: StageName) -> str:
    """The score that selects a stage's checkpoint and stands for it in the report."""
    experts = parts(config, stage).experts
    return experts[0] if len(experts) == 1 else "mixture"


def frozen_experts(config: Config, stage: StageName) -> tuple[ExpertName, ...]:
    """Those that the stage keeps as they come."""
    return config.disentangle.freeze if stage == "disentangle" else ()


def frozen_parameters(config: Config, stage: StageName) -> tuple[str, ...]:
    """How the names of those of the dense module begin that the stage does not train."""
    if not parts(config, stage).recommends:
        # Only the recommendation loss reaches them: weight decay alone would wear them down.
        return ("experts.aligned.encoder.", "experts.aligned.fusion.")
    return tuple(f"experts.{name}." for name in frozen_experts(config, stage))


def needs_text(config: Config, stage: StageName) -> bool:
    """Whether the stage's model reads the text table."""
    return parts(config, stage).has_text


def averaged_tables(config: Config, stage: StageName) -> set[ExpertName]:
    """The tables of which a stage keeps a running average: those that it trains."""
    trained = set(parts(config, stage).tables).difference(frozen_experts(config, stage))
    return trained if config.stage(stage).average else set()


def reads_frequency(config: Config, stage: StageName) -> bool:
    """Whether the stage reads how often its items stand in training."""
    return parts(config, stage).gate == "smooth" or (stage == "disentangle" and config.disentangle.rare_power > 0)


def table_spec(config: Config, stage: StageName, items: int) -> TableSpec:
    """The tables of a stage: one row per item, or as many as hashed ids may have, and one for padding."""
    rows = config.sparse.hashed.rows if config.sparse.hashed else items
    settings = config.stage(stage)
    return TableSpec(parts(config, stage).tables, rows + 1, config.model.dim, settings.sparse_lr, settings.weight_decay)


def inherits(config: Config, stage: StageName) -> tuple[tuple[StageName, ExpertName, ExpertName], ...]:
    """What the stage takes over from this run's earlier stages.

    A continued stage starts from the earlier run's; but what it freezes, it takes as this run's own stages left it.
    """
    frozen = frozen_experts(config, stage)
    return tuple(entry for entry in parts(config, stage).inherits if not config.continue_from or entry[2] in frozen)


def reads_text(config: Config, stage: StageName, dataset: Dataset) -> bool:
    """Whether the stage reads text vectors: for its model, its first rows, or those of items new to an earlier run."""
    if needs_text(config, stage):
        return True
    if not config.continue_from:
        return parts(config, stage).text_rows
    return not config.sparse.hashed and dataset.items > earlier(config, stage).items


def stage_dir(config: Config, stage: StageName) -> str:
    """Where a stage writes."""
    return f"{config.out}/{stage}"


def checkpoint_dir(config: Config, stage: StageName) -> str:
    """Where the checkpoints of a stage lie."""
    return f"{config.checkpoint.root or config.out}/{stage}"


def command(config_path: str, stage: StageName) -> str:
    """The command that trains a stage."""
    return f"deepspeed launchers/{stage}.py --config {config_path}"


def check_ready(config: Config, stage: StageName, config_path: str) -> None:
    """Refuse a stage before what it starts from is trained, or without the text vectors it reads, naming the fix.

    Raises:
        UserError: see `parts`, `text_manifest`, `check_fits`; the text vectors are too narrow to start rows from; or
            an earlier stage is not trained on these settings and data.
    """
    made_of, dataset = parts(config, stage), Dataset.open(config.dataset)
    if config.continue_from:
        check_fits(config, stage, dataset, text=made_of.has_text, beside=made_of.beside)
    if reads_text(config, stage, dataset):
        width = text_manifest(dataset.url, config.text).counts["dim"]
        if made_of.text_rows and not config.continue_from and width < config.model.dim:
            raise UserError(
                f"method={config.method} starts rows of model.dim={config.model.dim} from text vectors of only {width} "
                f"dimensions: set model.dim to at most {width}, or use another text.model"
            )
    for before, _, _ in inherits(config, stage):
        if not is_trained(config, before):
            again = command(config_path, before)
            raise UserError(
                other_version(f"{stage_dir(config, before)}/result.json", dataset, again)
                or f"{stage} needs a trained {before} stage in {stage_dir(config, before)} with these settings and "
                f"data{other_settings(config, before)}: run `{again}` first"
            )


def is_trained(config: Config, stage: StageName) -> bool:
    """Whether the stage was trained to its end with these settings and data."""
    result = f"{stage_dir(config, stage)}/result.json"
    return storage.exists(result) and storage.read_json(result)["fingerprint"] == fingerprint(config, stage)


def other_settings(config: Config, stage: StageName) -> str:
    """What differs where the stage was trained to its end with other settings, in brackets; "" where it was not."""
    result = f"{stage_dir(config, stage)}/result.json"
    if not storage.exists(result):
        return ""
    return f" (there: {differences(storage.read_json(result)['made_from'], made_from(config, stage))})"


def evaluation_mark(config: Config, stage: StageName) -> str:
    """Hex digest of all that determines the stage's evaluation."""
    return f"{fingerprint(config, stage)}-{config.evaluation.cold_max_frequency}"


def fingerprint(config: Config, stage: StageName) -> str:
    """Hex digest of all that determines the stage's result: settings, data, and the stages it starts from."""
    return hashlib.sha256(json.dumps(made_from(config, stage), sort_keys=True).encode()).hexdigest()


def made_from(config: Config, stage: StageName) -> dict[str, Any]:
    """All that determines the stage's result, as JSON values by config key: settings, data, and earlier stages."""
    dataset = Dataset.open(config.dataset)
    text = None
    if reads_text(config, stage, dataset):
        text = config.text.model_dump(mode="json", include={"transform", "whitening"})
        text["vectors"] = text_manifest(dataset.url, config.text).content_hash()
    return {
        **stage_settings(config, stage),
        "dataset": dataset.content_hash,
        "text": text,
        "starts from": {before: fingerprint(config, before) for before, _, _ in inherits(config, stage)},
        "continue_from": earlier(config, stage).fingerprint if config.continue_from else None,
    }


def stage_settings(config: Config, stage: StageName) -> dict[str, Any]:
    """Those of the stage itself, known without any data: as JSON values by config key.

    Where it runs (world_size, device, logging, memory, checkpoints) does not enter.
    """
    made_of = parts(config, stage)
    sections: set[str] = {stage, made_of.beside or stage}
    return {
        "seed": config.seed,
        "model": config.stage_model(stage).model_dump(mode="json", exclude=_unused(made_of)),
        "sparse": config.sparse.model_dump(
            mode="json", exclude={"backend", "sharding", "grid_columns", "uvm", "memory_gib"}
        ),
        "training": config.training.model_dump(
            mode="json",
            exclude={"world_size", "zero_stage", "device", "log_every"}
            | {"non_finite", "first_step_timeout_s", "step_timeout_s", "restarts"},
        ),
        "evaluation": {"every": config.evaluation.every},
        **{name: getattr(config, name).model_dump(mode="json") for name in sections},
        "parts": {name: getattr(made_of, name) for name in ("recommends", "beside", "text_rows", "ranks")},
    }


def _unused(made_of: Parts) -> set[str]:
    """What of the model section no part of the stage reads."""
    unused: set[str] = set() if "neighbours" in made_of.experts else {"neighbours"}
    if "aligned" not in made_of.experts:
        unused |= {"fusion", "row_dropout"}
    if not {"aligned", "text"} & {*made_of.experts}:
        unused |= {"projector_layers", "projector_activation", "projector_dropout"}
    return unused if made_of.gate == "frequency" else unused | {"gate_init"}
