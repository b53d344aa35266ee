"""The stages of PAD, which most tests of training go through."""

from pad_dist.config import StageName

STAGES: tuple[StageName, ...] = ("pretrain", "align", "disentangle")
