"""What a sequence encoder is (docs/method.md, "Backbone")."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from pad_dist.config import ModelConfig
from pad_dist.runtime.registry import Registry


class Backbone(nn.Module, ABC):
    """A sequence encoder: item vectors [P, D], sequences end to end, oldest item first -> user vectors [P, D].

    An output depends only on the items of its sequence up to its position.
    """

    def __init__(self, config: Any, model: ModelConfig) -> None:
        """`config` is the backbone's section, `model.backbone`."""
        super().__init__()

    @abstractmethod
    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """[P, D] item vectors, lengths [B], each at most L and B may be 0 -> [P, D] user vectors."""

    @staticmethod
    @abstractmethod
    def activation_values(config: Any, model: ModelConfig) -> int:
        """Most values per position in a training step: those that backward needs, and temporary copies."""


BACKBONES: Registry[Backbone] = Registry(__package__)


def build_backbone(model: ModelConfig) -> Backbone:
    """The backbone of `model.backbone`."""
    return BACKBONES[type(model.backbone)](model.backbone, model)
