"""The backbones behind one interface."""

from __future__ import annotations

from torch import nn

from pad_dist.config import ModelConfig
from pad_dist.model.caser import Caser
from pad_dist.model.gru4rec import Gru4Rec
from pad_dist.model.transformer import Ligr, SasRec


def build_encoder(config: ModelConfig) -> nn.Module:
    """The backbone of `model.backbone`: (vectors [P, D], lengths [B]) -> user vectors [P, D].

    Sequences lie end to end, oldest item first, each of at most L positions; B may be 0. An output
    depends on its own sequence up to its position alone.
    """
    return {"sasrec": SasRec, "ligr": Ligr, "gru4rec": Gru4Rec, "caser": Caser}[config.backbone](config)
