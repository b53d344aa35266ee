"""SASRec and LiGR: causal transformers on jagged sequences (METHOD, backbone)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pad_dist.config import ModelConfig
from pad_dist.model.jagged import Jagged

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
        self.blocks = nn.ModuleList(self.block(config) for _ in range(config.blocks))

    def block(self, config: ModelConfig) -> nn.Module:
        """One layer, ([P, D], Jagged) -> [P, D]."""
        return Block(config)

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """[P, D] item vectors end to end, lengths [B] -> [P, D] user vectors; see `build_encoder`."""
        jagged = Jagged(lengths, len(vectors), self.max_length)
        x = vectors
        if self.positions is not None:
            x = x + self.positions(self.max_length - jagged.left)
        x = self.dropout(x if self.pre_norm else self.norm(x))
        for block in self.blocks:
            x = block(x, jagged)
        output: Tensor = self.norm(x) if self.pre_norm else x
        return output


class Ligr(SasRec):
    """SASRec's pre-norm form with LiGR's blocks (arXiv 2502.03417, as in eSASRec, arXiv 2508.06450)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.pre_norm = True

    def block(self, config: ModelConfig) -> nn.Module:
        """One layer, ([P, D], Jagged) -> [P, D]."""
        return LigrBlock(config)


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

    def forward(self, x: Tensor, jagged: Jagged) -> Tensor:
        """[P, D] -> [P, D]."""
        if self.pre_norm:
            x = x + self.dropout(self.attention(self.attention_norm(x), jagged))
            x = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        else:
            x = self.attention_norm(x + self.dropout(self.attention(x, jagged)))
            x = self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
        return x


class LigrBlock(nn.Module):
    """Attention and SwiGLU feed-forward f, each x + sigmoid(Linear(x)) * Dropout(f(LN(x)))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = nn.LayerNorm(config.dim, eps=_NORM_EPS)
        self.attention_gate = nn.Linear(config.dim, config.dim)
        self.feed_forward = SwiGlu(config.dim)
        self.feed_forward_norm = nn.LayerNorm(config.dim, eps=_NORM_EPS)
        self.feed_forward_gate = nn.Linear(config.dim, config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, jagged: Jagged) -> Tensor:
        """[P, D] -> [P, D]."""
        change: Tensor = self.dropout(self.attention(self.attention_norm(x), jagged))
        x = x + torch.sigmoid(self.attention_gate(x)) * change
        change = self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return x + torch.sigmoid(self.feed_forward_gate(x)) * change


class SwiGlu(nn.Module):
    """[P, D] -> [P, D]: Linear(SiLU(Linear(x)) * Linear(x)) with a hidden width of 4 D."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.opening = nn.Linear(dim, 4 * dim)
        self.value = nn.Linear(dim, 4 * dim)
        self.out = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        output: Tensor = self.out(F.silu(self.opening(x)) * self.value(x))
        return output


class Attention(nn.Module):
    """Multi-head causal self-attention; q, k, v and output projections without bias."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.query = nn.Linear(config.dim, config.dim, bias=False)
        self.key = nn.Linear(config.dim, config.dim, bias=False)
        self.value = nn.Linear(config.dim, config.dim, bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, jagged: Jagged) -> Tensor:
        """[P, D] -> [P, D], attending within each sequence."""
        # Padding stands behind the items, where the causal mask already hides it from every one of
        # them: the same numbers as left padding with a key mask, and the fast kernels apply.
        dim = x.shape[1]
        grid = jagged.padded(torch.cat([self.query(x), self.key(x), self.value(x)], dim=1))
        grid = grid.unflatten(2, (3, self.heads, dim // self.heads))
        query, key, value = grid.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(
            query, key, value, dropout_p=self.dropout if self.training else 0.0, is_causal=True
        )
        output: Tensor = self.out(jagged.unpadded(mixed.transpose(1, 2).flatten(2)))
        return output
