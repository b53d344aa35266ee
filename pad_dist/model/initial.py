"""First values of dense weights."""

from __future__ import annotations

from torch import nn


def initialise(module: nn.Module) -> None:
    """Xavier-normal weights and zero biases, as in the paper; for `nn.Module.apply`."""
    if isinstance(module, nn.Linear | nn.Embedding | nn.Conv1d | nn.GRU):
        for weight in module.parameters():
            if weight.dim() > 1:
                nn.init.xavier_normal_(weight)
            else:
                nn.init.zeros_(weight)
