"""SASRec on jagged sequences (METHOD, backbone)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pad_dist.config import ModelConfig

_NORM_EPS = 1e-6


class SasRec(nn.Module):
    """Causal transformer over item vectors; the output at a position is the user vector there.

    `norm="post"` is METHOD's form, with the outer norm on the input; `norm="pre"` has the
    same layers with each norm before its sublayer and the outer norm on the output.
    `positions="end"` counts positions from the last item, as left padding does.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.max_length = config.max_length
        self.pre_norm = config.norm == "pre"
        self.positions = nn.Embedding(config.max_length, config.dim) if config.positions == "end" else None
        self.norm = nn.LayerNorm(config.dim, eps=_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """Encode sequences that lie end to end.

        Args:
            vectors: [P, D] item vectors, oldest first.
            lengths: [B] positions per sequence, each at most L; B may be 0.

        Returns:
            [P, D]; each output depends on its own sequence up to its position alone.
        """
        batch, total = lengths.numel(), vectors.shape[0]
        starts = lengths.cumsum(0) - lengths
        rank = torch.arange(total, device=lengths.device)
        rank = rank - starts.repeat_interleave(lengths, output_size=total)
        sequence = torch.arange(batch, device=lengths.device).repeat_interleave(lengths, output_size=total)
        slots = sequence * self.max_length + rank

        x = vectors
        if self.positions is not None:
            x = x + self.positions(self.max_length - lengths.repeat_interleave(lengths, output_size=total) + rank)
        x = self.dropout(x if self.pre_norm else self.norm(x))
        for block in self.blocks:
            x = block(x, slots, batch)
        output: Tensor = self.norm(x) if self.pre_norm else x
        return output


class Block(nn.Module):
    """Attention and feed-forward, each with dropout, residual and layer norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pre_norm = config.norm == "pre"
        self.attention = Attention(config)
        self.attention_norm = nn.LayerNorm(config.dim, eps=_NORM_EPS)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.dim, 4 * config.dim), nn.ReLU(), nn.Linear(4 * config.dim, config.dim)
        )
        self.feed_forward_norm = nn.LayerNorm(config.dim, eps=_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, slots: Tensor, batch: int) -> Tensor:
        """[P, D] -> [P, D]; `slots` and `batch` as in `Attention.forward`."""
        if self.pre_norm:
            x = x + self.dropout(self.attention(self.attention_norm(x), slots, batch))
            x = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        else:
            x = self.attention_norm(x + self.dropout(self.attention(x, slots, batch)))
            x = self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
        return x


class Attention(nn.Module):
    """Multi-head causal self-attention; q, k, v and output projections without bias."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.max_length = config.max_length
        self.dropout = config.dropout
        self.query = nn.Linear(config.dim, config.dim, bias=False)
        self.key = nn.Linear(config.dim, config.dim, bias=False)
        self.value = nn.Linear(config.dim, config.dim, bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, slots: Tensor, batch: int) -> Tensor:
        """Attend within each sequence.

        Args:
            x: [P, D].
            slots: [P] place of each position in the [B * L] grid, sequences starting at column 0.
            batch: B.
        """
        # Padding stands behind the items, where the causal mask already hides it from every one of
        # them: the same numbers as left padding with a key mask, and the fast kernels apply.
        dim = x.shape[1]
        projected = torch.cat([self.query(x), self.key(x), self.value(x)], dim=1)
        grid = projected.new_zeros(batch * self.max_length, 3 * dim).index_copy(0, slots, projected)
        grid = grid.view(batch, self.max_length, 3, self.heads, dim // self.heads)
        query, key, value = grid.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(
            query, key, value, dropout_p=self.dropout if self.training else 0.0, is_causal=True
        )
        flat = mixed.transpose(1, 2).reshape(batch * self.max_length, dim).index_select(0, slots)
        output: Tensor = self.out(flat)
        return output
