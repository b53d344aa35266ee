"""GRU4Rec on jagged sequences (arXiv 1511.06939)."""

from __future__ import annotations

from torch import Tensor, nn

from pad_dist.config import Gru4RecConfig, ModelConfig
from pad_dist.model.backbones.base import BACKBONES, Backbone
from pad_dist.model.backbones.jagged import Jagged


@BACKBONES.register(Gru4RecConfig)
class Gru4Rec(Backbone):
    """Dropout, `layers` GRU layers of width D with dropout between them, Linear(D, D)."""

    def __init__(self, config: Gru4RecConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        self.max_length = model.max_length
        self.dropout = nn.Dropout(model.dropout)
        self.gru = nn.GRU(
            model.dim,
            model.dim,
            config.layers,
            batch_first=True,
            dropout=model.dropout if config.layers > 1 else 0.0,  # torch warns of dropout without effect
        )
        self.out = nn.Linear(model.dim, model.dim)

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """See `Backbone.forward`."""
        jagged = Jagged(lengths, len(vectors), self.max_length)
        states, _ = self.gru(jagged.padded(self.dropout(vectors)))
        output: Tensor = self.out(jagged.unpadded(states))
        return output

    @staticmethod
    def activation_values(config: Gru4RecConfig, model: ModelConfig) -> int:
        """Gates, states and products of each layer; then the padded grid and the output."""
        return (16 * config.layers + 4) * model.dim
