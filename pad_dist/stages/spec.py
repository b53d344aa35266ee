"""One training stage of a run, resolved once from the config and handed down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pad_dist.config import (
    EXPERTS,
    AlignConfig,
    AuxiliaryConfig,
    Config,
    DisentangleConfig,
    ExpertName,
    ModelConfig,
    StageConfig,
    StageName,
)
from pad_dist.model.heads import Head
from pad_dist.model.recommender import Recommender
from pad_dist.objectives.auxiliary.base import AuxiliaryLoss, auxiliary_class
from pad_dist.sparse.spec import TableSpec

AuxiliaryName = Literal["align", "rlmrec_con", "rlmrec_gen"]
"""Sections that describe an auxiliary loss."""


@dataclass(frozen=True)
class Inherited:
    """An expert that a stage copies from an earlier one: its dense weights, and the table of its name.

    Attributes:
        stage: the stage that trained it.
        source: the expert's name in that stage.
        expert: its name in this stage.
    """

    stage: StageSpec
    source: ExpertName
    expert: ExpertName


@dataclass(frozen=True)
class StageSpec:
    """What a stage is made of. Whoever works on a stage asks this object, not the config, what it has to do.

    Attributes:
        config: of the run.
        experts: in the order of `EXPERTS`.
        inherits: experts that come from this run's earlier stages; one that is not named starts at random, or from the
            run that `config.warm_start` names.
        recommends: whether the stage learns from the recommendation loss.
        auxiliary_name: section of the auxiliary loss that the stage learns from too.
        is_mixture: whether a gate mixes the experts, as `config.disentangle` says.
        rows_from_text: whether the ID table starts from the texts instead of at random.
        evaluated: whether the stage ranks items, so that validation selects its checkpoint; else the last one is kept.
        aligned_from: the stage whose ID expert the aligned expert is made of: what alignment may make it forget.
    """

    config: Config
    name: StageName
    experts: tuple[ExpertName, ...]
    inherits: tuple[Inherited, ...] = ()
    recommends: bool = True
    auxiliary_name: AuxiliaryName | None = None
    is_mixture: bool = False
    rows_from_text: bool = False
    evaluated: bool = True
    aligned_from: StageSpec | None = None

    @property
    def settings(self) -> StageConfig:
        """How the stage is trained."""
        return self.config.stage(self.name)

    @property
    def model_config(self) -> ModelConfig:
        """The model section with the stage's own dropout."""
        return self.config.stage_model(self.name)

    @property
    def mixture(self) -> DisentangleConfig | None:
        """How the experts are mixed."""
        return self.config.disentangle if self.is_mixture else None

    @property
    def auxiliary(self) -> AuxiliaryConfig | None:
        """Section of the auxiliary loss."""
        section: AuxiliaryConfig | None = getattr(self.config, self.auxiliary_name) if self.auxiliary_name else None
        return section

    @property
    def auxiliary_loss(self) -> type[AuxiliaryLoss] | None:
        """Class of the auxiliary loss."""
        return auxiliary_class(self.auxiliary) if self.auxiliary else None

    @property
    def tables(self) -> tuple[ExpertName, ...]:
        """The ID tables, named like their experts."""
        return tuple(name for name in self.experts if EXPERTS[name].has_table)

    @property
    def frozen(self) -> tuple[ExpertName, ...]:
        """Experts that stay as they are."""
        return self.mixture.freeze if self.mixture else ()

    @property
    def frozen_prefixes(self) -> tuple[str, ...]:
        """How the names of the dense weights begin that the stage does not train."""
        if not self.recommends:
            # Only the recommendation loss reaches them: weight decay alone would wear them down.
            return ("experts.aligned.encoder.", "experts.aligned.fusion.")
        return tuple(f"experts.{name}." for name in self.frozen)

    @property
    def ema_tables(self) -> frozenset[ExpertName]:
        """The tables whose moving average is kept: those that the stage trains."""
        return frozenset(self.tables).difference(self.frozen) if self.settings.ema_decay else frozenset()

    @property
    def needs_text(self) -> bool:
        """Whether the model reads text vectors."""
        return self.auxiliary is not None or any(EXPERTS[name].reads_text for name in self.experts)

    @property
    def needs_frequency(self) -> bool:
        """Whether the model or its loss reads the train frequency of items."""
        return self.mixture is not None and (self.mixture.gate == "smooth" or self.mixture.rare_power > 0)

    @property
    def log_mix(self) -> bool:
        """Whether log-probabilities are mixed instead of logits."""
        return self.mixture is not None and self.mixture.mix == "log_probabilities"

    @property
    def targets(self) -> Literal["train", "valid"]:
        """Whose targets the stage learns from."""
        return self.mixture.targets if self.mixture else "train"

    @property
    def item_share(self) -> float:
        """Share of items that the auxiliary loss sees in a step."""
        return self.auxiliary.item_share if isinstance(self.auxiliary, AlignConfig) else 1.0

    @property
    def main_scorer(self) -> str:
        """The scorer that selects the stage's checkpoint and represents it in the report."""
        return self.experts[0] if len(self.experts) == 1 else "mixture"

    @property
    def directory(self) -> str:
        """Where the stage leaves its logs and results."""
        return f"{self.config.out}/{self.name}"

    @property
    def result_url(self) -> str:
        """Where it leaves what it has learned, when it ends."""
        return f"{self.directory}/result.json"

    @property
    def checkpoint_directory(self) -> str:
        """Where its checkpoints are."""
        return f"{self.config.checkpoint.root or self.config.out}/{self.name}"

    def command(self, config_path: str = "CONFIG") -> str:
        """The command that trains it."""
        return f"deepspeed launchers/{self.name}.py --config {config_path}"

    def table_spec(self, items: int) -> TableSpec:
        """Its tables: one row per item, or as many as hashed ids may have, and one for padding."""
        rows = self.config.sparse.hashed.rows if self.config.sparse.hashed else items
        settings = self.settings
        return TableSpec(self.tables, rows + 1, self.config.model.dim, settings.sparse_lr, settings.weight_decay)

    def build_model(self, text_dim: int) -> Recommender:
        """Its dense model, weights drawn from torch's generator; `text_dim` is 0 where it reads no text."""

        def make_head() -> Head | None:
            return self.auxiliary_loss.make_head(self.model_config, text_dim) if self.auxiliary_loss else None

        return Recommender(self.experts, self.model_config, text_dim, self.mixture, make_head)

    def result_settings(self) -> dict[str, Any]:
        """The settings that determine its result, known without any data, as JSON values by config key.

        Where it runs (world size, device, logging, memory, checkpoints) does not enter.
        """
        config = self.config
        model = {"dim", "max_length", "dropout"}.union(*(EXPERTS[name].model_keys for name in self.experts))
        sections = [name for name in dict.fromkeys((self.name, self.auxiliary_name)) if name]
        return {
            "seed": config.seed,
            "model": self.model_config.model_dump(mode="json", include=model),
            "sparse": config.sparse.result_settings(),
            "training": config.training.result_settings(),
            "evaluation": config.evaluation.result_settings(),
            **{name: getattr(config, name).result_settings() for name in sections},
            "stage": {
                "recommends": self.recommends,
                "auxiliary": self.auxiliary_name,
                "rows_from_text": self.rows_from_text,
                "evaluated": self.evaluated,
            },
        }
