"""From frozen text embeddings to the model width (METHOD, text)."""

from __future__ import annotations

from torch import nn

from pad_dist.config import ModelConfig


class Projector(nn.Sequential):
    """[n, text_dim] -> [n, D]: GELU(Linear), then `projector_layers` times Dropout, Linear, GELU.

    The last GELU is there only when `projector_activation` is set.
    """

    def __init__(self, config: ModelConfig, text_dim: int) -> None:
        dropout = config.dropout if config.projector_dropout is None else config.projector_dropout
        layers: list[nn.Module] = [nn.Linear(text_dim, config.dim), nn.GELU()]
        for _ in range(config.projector_layers):
            layers += [nn.Dropout(dropout), nn.Linear(config.dim, config.dim), nn.GELU()]
        super().__init__(*(layers if config.projector_activation else layers[:-1]))
