"""GRU4Rec on jagged sequences (arXiv 1511.06939)."""

from __future__ import annotations

from torch import Tensor, nn

from pad_dist.config import ModelConfig
from pad_dist.model.jagged import Jagged


class Gru4Rec(nn.Module):
    """Dropout, `blocks` GRU layers of width D with dropout between them, Linear(D, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.max_length = config.max_length
        self.dropout = nn.Dropout(config.dropout)
        self.gru = nn.GRU(
            config.dim,
            config.dim,
            config.blocks,
            batch_first=True,
            dropout=config.dropout if config.blocks > 1 else 0.0,  # torch warns of dropout that acts nowhere
        )
        self.out = nn.Linear(config.dim, config.dim)

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """[P, D] item vectors end to end, lengths [B] -> [P, D] user vectors; see `build_encoder`."""
        jagged = Jagged(lengths, len(vectors), self.max_length)
        states, _ = self.gru(jagged.padded(self.dropout(vectors)))
        output: Tensor = self.out(jagged.unpadded(states))
        return output
