"""Caser on jagged sequences (arXiv 1809.07426), without its user table."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pad_dist.config import CaserConfig, ModelConfig
from pad_dist.model.backbones.base import BACKBONES, Backbone
from pad_dist.model.backbones.jagged import Jagged


@BACKBONES.register(CaserConfig)
class Caser(Backbone):
    """Convolutions over the window of the last W items at each position, zeros before the first one.

    Horizontal filters of every height 1..W, ReLU, and the maximum over the window; vertical filters,
    weighted sums of the W vectors; then Dropout, Linear, ReLU, Linear(D, D). The paper's user table is left
    out, as new users would not be in it. The last layer lets vectors have either sign.
    """

    def __init__(self, config: CaserConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        self.max_length, self.window = model.max_length, config.window
        self.horizontal = nn.ModuleList(
            nn.Conv1d(model.dim, config.horizontal, height) for height in range(1, config.window + 1)
        )
        self.vertical = nn.Linear(config.window, config.vertical)
        self.dropout = nn.Dropout(model.dropout)
        self.hidden = nn.Linear(config.horizontal * config.window + config.vertical * model.dim, model.dim)
        self.out = nn.Linear(model.dim, model.dim)

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """See `Backbone.forward`."""
        jagged = Jagged(lengths, len(vectors), self.max_length)
        grid = F.pad(jagged.padded(vectors), (0, 0, self.window - 1, 0))  # [B, W - 1 + L, D]
        # Windows overlap, so each filter runs once per place, and the maximum slides over the results.
        features = [
            F.max_pool1d(torch.relu(conv(grid.transpose(1, 2))), self.window - height + 1, stride=1)
            for height, conv in enumerate(self.horizontal, start=1)
        ]
        windows = [jagged.unpadded(grid[:, place : place + self.max_length]) for place in range(self.window)]
        vertical = self.vertical(torch.stack(windows, dim=2)).flatten(1)  # [P, D * V]
        x = torch.cat([jagged.unpadded(torch.cat(features, dim=1).transpose(1, 2)), vertical], dim=1)
        output: Tensor = self.out(torch.relu(self.hidden(self.dropout(x))))
        return output

    @staticmethod
    def activation_values(config: CaserConfig, model: ModelConfig) -> int:
        """The vectors of each window, the outputs of both kinds of filter, and the two layers after them."""
        kept = (config.window + 2 * config.vertical + 4) * model.dim + 5 * config.window * config.horizontal
        return 2 * kept
