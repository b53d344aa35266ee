"""What each stage is made of, and what it takes over from its predecessors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from pad_dist.config import Config, ExpertName, MethodName, StageName
from pad_dist.data.dataset import Dataset
from pad_dist.errors import UserError
from pad_dist.model.gate import GateName
from pad_dist.model.heads import HeadName
from pad_dist.sparse.tables import TableSpec
from pad_dist.stages.earlier import earlier

Inherits = tuple[StageName, ExpertName, ExpertName]
"""(stage, expert there, expert here): what a stage takes over."""
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
    inherits: tuple[Inherits, ...] = ()
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
    """The stages of a run, in their order: of PAD those that its experts come from, and the last."""
    whole = METHODS[config.method]
    if config.method != "pad":
        return tuple(whole)
    direct = {source for source, _, _ in _mixed_from(config)}
    needed = direct | {source for stage in direct for source, _, _ in whole[stage].inherits}
    return tuple(stage for stage in whole if stage in needed or stage == "disentangle")


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
    chosen = config.disentangle.experts
    return replace(
        whole,
        experts=tuple(name for name in whole.experts if name in chosen),
        tables=tuple(name for name in whole.tables if name in chosen),
        inherits=_mixed_from(config),
        gate=None if config.disentangle.gate == "none" else config.disentangle.gate,
        log_mix=config.disentangle.mix == "log_probabilities",
    )


def _mixed_from(config: Config) -> tuple[Inherits, ...]:
    """Where the chosen experts of the mixture come from."""
    settings, entries = config.disentangle, METHODS["pad"]["disentangle"].inherits
    chosen = [entry for entry in entries if entry[2] in settings.experts]
    return tuple(entry for entry in chosen if settings.trained_text or entry[0] != "pretrain_text")


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


def inherits(config: Config, stage: StageName) -> tuple[Inherits, ...]:
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
