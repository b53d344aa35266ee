"""Caser on jagged sequences (arXiv 1809.07426), without its user table."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pad_dist.config import ModelConfig
from pad_dist.model.jagged import Jagged


class Caser(nn.Module):
    """Convolutions over the window of the last W items at each position, zeros before the first one.

    Horizontal filters of every height 1..W, ReLU, and the maximum over the window; vertical filters,
    weighted sums of the W vectors; then Dropout, Linear, ReLU, Linear(D, D). In place of the paper's
    table of users, which new users would not be in, the last layer lets vectors have either sign.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        caser = config.caser
        self.max_length, self.window = config.max_length, caser.window
        self.horizontal = nn.ModuleList(
            nn.Conv1d(config.dim, caser.horizontal, height) for height in range(1, caser.window + 1)
        )
        self.vertical = nn.Linear(caser.window, caser.vertical)
        self.dropout = nn.Dropout(config.dropout)
        self.hidden = nn.Linear(caser.horizontal * caser.window + caser.vertical * config.dim, config.dim)
        self.out = nn.Linear(config.dim, config.dim)

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """[P, D] item vectors end to end, lengths [B] -> [P, D] user vectors; see `build_encoder`."""
        jagged = Jagged(lengths, len(vectors), self.max_length)
        grid = F.pad(jagged.padded(vectors), (0, 0, self.window - 1, 0))  # [B, W - 1 + L, D]
        # Windows overlap, so a filter is applied once at each place, and the maximum slides over the results.
        features = [
            F.max_pool1d(torch.relu(conv(grid.transpose(1, 2))), self.window - height + 1, stride=1)
            for height, conv in enumerate(self.horizontal, start=1)
        ]
        windows = [jagged.unpadded(grid[:, place : place + self.max_length]) for place in range(self.window)]
        vertical = self.vertical(torch.stack(windows, dim=2)).flatten(1)  # [P, D * V]
        x = torch.cat([jagged.unpadded(torch.cat(features, dim=1).transpose(1, 2)), vertical], dim=1)
        output: Tensor = self.out(torch.relu(self.hidden(self.dropout(x))))
        return output
