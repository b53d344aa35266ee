"""From frozen text embeddings to the model width (docs/method.md, "Text")."""

from __future__ import annotations

from torch import nn

from pad_dist.config import ModelConfig


class Projector(nn.Sequential):
    """[n, text_dim] -> [n, D]: GELU(Linear), then `model.projector.layers` times Dropout, Linear, GELU.

    Only `model.projector.activation` keeps the last GELU.
    """

    def __init__(self, model: ModelConfig, text_dim: int) -> None:
        config = model.projector
        dropout = model.dropout if config.dropout is None else config.dropout
        layers: list[nn.Module] = [nn.Linear(text_dim, model.dim), nn.GELU()]
        for _ in range(config.layers):
            layers += [nn.Dropout(dropout), nn.Linear(model.dim, model.dim), nn.GELU()]
        super().__init__(*(layers if config.activation else layers[:-1]))

    @staticmethod
    def activation_values(model: ModelConfig) -> int:
        """Most values per item in a training step."""
        return 3 * (1 + model.projector.layers) * model.dim
