"""The methods, each an ordered list of stages, and how a config resolves to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pad_dist.config import EXPERTS, Config, ExpertName, MethodName, StageName
from pad_dist.errors import UserError
from pad_dist.stages.spec import AuxiliaryName, Inherited, StageSpec


@dataclass(frozen=True)
class Recipe:
    """A stage as its method defines it, before a config chooses; see `StageSpec`.

    `inherits` has (stage, expert in that stage, expert in this one) of each expert that comes from an earlier stage
    (docs/method.md, "Phase 2: align" and "Phase 3: disentangle").
    """

    experts: tuple[ExpertName, ...]
    inherits: tuple[tuple[StageName, ExpertName, ExpertName], ...] = ()
    auxiliary: AuxiliaryName | None = None
    is_mixture: bool = False
    rows_from_text: bool = False
    evaluated: bool = True


_ID = Recipe(("id",))
_TEXT = Recipe(("text",))
_ALIGNED = Recipe(("aligned",), (("pretrain", "id", "aligned"),), auxiliary="align")
_MIXTURE = Recipe(
    tuple(EXPERTS),
    (("pretrain", "id", "id"), ("align", "aligned", "aligned"), ("pretrain_text", "text", "text")),
    is_mixture=True,
)

METHODS: dict[MethodName, dict[StageName, Recipe]] = {
    "id": {"pretrain": _ID},
    "text": {"pretrain_text": _TEXT},
    "whitenrec": {"pretrain_text": _TEXT},
    "llm_init": {"pretrain": replace(_ID, rows_from_text=True)},
    "clip": {"pretrain": _ID, "align": _ALIGNED},
    "ctrl": {
        "align": replace(_ALIGNED, inherits=(), evaluated=False),
        "pretrain": replace(_ID, inherits=(("align", "aligned", "id"),)),
    },
    "rlmrec_con": {"pretrain": replace(_ID, auxiliary="rlmrec_con")},
    "rlmrec_gen": {"pretrain": replace(_ID, auxiliary="rlmrec_gen")},
    "pad": {"pretrain": _ID, "align": _ALIGNED, "pretrain_text": _TEXT, "disentangle": _MIXTURE},
}
"""The stages of each method in their order."""


def resolve_stages(config: Config) -> tuple[StageSpec, ...]:
    """The stages that a config trains, in their order."""
    resolved: dict[StageName, StageSpec] = {}
    for name, recipe in _chosen(config).items():
        spec = StageSpec(
            config,
            name,
            recipe.experts,
            recommends=config.align.anchor if recipe.auxiliary == "align" else True,
            auxiliary_name=recipe.auxiliary,
            is_mixture=recipe.is_mixture,
            rows_from_text=recipe.rows_from_text,
            evaluated=recipe.evaluated,
        )
        # A warm start brings every expert from the earlier run; but a frozen one is what this run's own stages made it.
        kept = [entry for entry in recipe.inherits if not config.warm_start or entry[2] in spec.frozen]
        inherits = tuple(Inherited(resolved[stage], source, expert) for stage, source, expert in kept)
        aligned_from = [resolved[stage] for stage, *experts in recipe.inherits if experts == ["id", "aligned"]]
        resolved[name] = replace(spec, inherits=inherits, aligned_from=next(iter(aligned_from), None))
    return tuple(resolved.values())


def find_stage(stages: Sequence[StageSpec], name: str) -> StageSpec:
    """The stage of that name.

    Raises:
        UserError: the method has none.
    """
    for spec in stages:
        if spec.name == name:
            return spec
    raise UserError(
        f"method={stages[0].config.method} has no {name} stage, it has {', '.join(spec.name for spec in stages)}"
    )


def _chosen(config: Config) -> dict[StageName, Recipe]:
    """The recipes of the method; of PAD those that the chosen experts come from, and the mixture of these."""
    recipes = METHODS[config.method]
    if config.method != "pad":
        return recipes
    settings, mixture = config.disentangle, recipes["disentangle"]
    inherits = tuple(
        entry
        for entry in mixture.inherits
        if entry[2] in settings.experts and (settings.trained_text or entry[0] != "pretrain_text")
    )
    experts = tuple(name for name in mixture.experts if name in settings.experts)
    direct = {stage for stage, _, _ in inherits}
    needed = direct | {before for stage in direct for before, _, _ in recipes[stage].inherits}
    chosen = {name: recipe for name, recipe in recipes.items() if name in needed}
    return {**chosen, "disentangle": replace(mixture, experts=experts, inherits=inherits)}
