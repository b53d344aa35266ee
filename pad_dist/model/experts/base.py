"""What an expert is (docs/method.md, "Phase 3: disentangle")."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from pad_dist.config import EXPERTS, ExpertName, ModelConfig
from pad_dist.data.batches import Rows, StepSize
from pad_dist.model.backbones.base import BACKBONES
from pad_dist.runtime.registry import Registry


class Expert(nn.Module, ABC):
    """An encoder, and item vectors computed from looked-up rows; both are `dim` wide.

    An item's vector is the same where the item is read and where it is predicted.
    """

    encoder: nn.Module

    def __init__(self, model: ModelConfig, text_dim: int) -> None:
        """`text_dim` is the width of the text vectors; 0 where the stage reads none."""
        super().__init__()
        self.dim = self.width(model, text_dim)

    @abstractmethod
    def item_vectors(self, rows: Rows) -> Tensor:
        """[U, dim] vectors of the items whose rows were looked up."""

    @classmethod
    def width(cls, model: ModelConfig, text_dim: int) -> int:
        """Width of its item and user vectors."""
        return model.dim

    @classmethod
    def activation_values(cls, model: ModelConfig, text_dim: int, step: StepSize) -> int:
        """Most values in memory in a training step of this size."""
        return encoder_values(model, step)


EXPERT_CLASSES: Registry[Expert] = Registry(__package__)


def build_expert(name: ExpertName, model: ModelConfig, text_dim: int) -> Expert:
    """The expert of that name."""
    return expert_class(name)(model, text_dim)


def expert_class(name: ExpertName) -> type[Expert]:
    """The class of the expert of that name."""
    return EXPERT_CLASSES[EXPERTS[name]]


def encoder_values(model: ModelConfig, step: StepSize) -> int:
    """Most values in memory for the backbone of one expert in a training step."""
    config: Any = model.backbone
    return step.positions * BACKBONES[type(config)].activation_values(config, model)
