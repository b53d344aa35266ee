"""The stages of PAD, which most tests of training go through, and any stage by its name."""

from pad_dist.config import Config, StageName
from pad_dist.stages.methods import find_stage, resolve_stages
from pad_dist.stages.spec import StageSpec

STAGES: tuple[StageName, ...] = ("pretrain", "align", "disentangle")


def stage_of(config: Config, name: str) -> StageSpec:
    """The stage of that name."""
    return find_stage(resolve_stages(config), name)
