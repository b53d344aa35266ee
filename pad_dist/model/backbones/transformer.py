"""SASRec and LiGR: causal transformers on jagged sequences (docs/method.md, "Backbone")."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pad_dist.config import LigrConfig, ModelConfig, SasRecConfig
from pad_dist.model.backbones.base import BACKBONES, Backbone
from pad_dist.model.backbones.jagged import Jagged

_NORM_EPS = 1e-6


class Transformer(Backbone):
    """Causal transformer over item vectors; the output at a position is its user vector.

    `positions="end"` counts positions from the last item, as left padding does.
    """

    pre_norm = True
    blocks: nn.ModuleList

    def __init__(self, config: SasRecConfig | LigrConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        self.max_length = model.max_length
        self.positions = nn.Embedding(model.max_length, model.dim) if config.positions == "end" else None
        self.norm = nn.LayerNorm(model.dim, eps=_NORM_EPS)
        self.dropout = nn.Dropout(model.dropout)

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """See `Backbone.forward`."""
        jagged = Jagged(lengths, len(vectors), self.max_length)
        x = vectors
        if self.positions is not None:
            x = x + self.positions(self.max_length - jagged.left)
        x = self.dropout(x if self.pre_norm else self.norm(x))
        for block in self.blocks:
            x = block(x, jagged)
        output: Tensor = self.norm(x) if self.pre_norm else x
        return output


@BACKBONES.register(SasRecConfig)
class SasRec(Transformer):
    """`norm="post"` is the paper's form, with the outer norm on the input.

    `norm="pre"` has the same layers, with each norm before its sublayer and the outer norm on the output.
    """

    def __init__(self, config: SasRecConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        self.pre_norm = config.norm == "pre"
        self.blocks = nn.ModuleList(Block(config, model) for _ in range(config.blocks))

    @staticmethod
    def activation_values(config: SasRecConfig, model: ModelConfig) -> int:
        """Inputs and outputs of norms, projections, attention, feed-forward and dropouts."""
        return 4 * model.dim + config.blocks * (30 * model.dim + 3 * config.heads * model.max_length)


@BACKBONES.register(LigrConfig)
class Ligr(Transformer):
    """SASRec's pre-norm form with LiGR's blocks (arXiv 2502.03417, as in eSASRec, arXiv 2508.06450)."""

    def __init__(self, config: LigrConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        self.blocks = nn.ModuleList(LigrBlock(config, model) for _ in range(config.blocks))

    @staticmethod
    def activation_values(config: LigrConfig, model: ModelConfig) -> int:
        """SASRec's, and what the gates and SwiGLU's second branch add."""
        return 4 * model.dim + config.blocks * (54 * model.dim + 3 * config.heads * model.max_length)


class Block(nn.Module):
    """Attention and feed-forward, each with dropout, residual and layer norm."""

    def __init__(self, config: SasRecConfig, model: ModelConfig) -> None:
        super().__init__()
        self.pre_norm = config.norm == "pre"
        self.attention = Attention(config.heads, model)
        self.attention_norm = nn.LayerNorm(model.dim, eps=_NORM_EPS)
        self.feed_forward = nn.Sequential(
            nn.Linear(model.dim, 4 * model.dim), nn.ReLU(), nn.Linear(4 * model.dim, model.dim)
        )
        self.feed_forward_norm = nn.LayerNorm(model.dim, eps=_NORM_EPS)
        self.dropout = nn.Dropout(model.dropout)

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

    def __init__(self, config: LigrConfig, model: ModelConfig) -> None:
        super().__init__()
        self.attention = Attention(config.heads, model)
        self.attention_norm = nn.LayerNorm(model.dim, eps=_NORM_EPS)
        self.attention_gate = nn.Linear(model.dim, model.dim)
        self.feed_forward = SwiGlu(model.dim)
        self.feed_forward_norm = nn.LayerNorm(model.dim, eps=_NORM_EPS)
        self.feed_forward_gate = nn.Linear(model.dim, model.dim)
        self.dropout = nn.Dropout(model.dropout)

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

    def __init__(self, heads: int, model: ModelConfig) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = model.dropout
        self.query = nn.Linear(model.dim, model.dim, bias=False)
        self.key = nn.Linear(model.dim, model.dim, bias=False)
        self.value = nn.Linear(model.dim, model.dim, bias=False)
        self.out = nn.Linear(model.dim, model.dim, bias=False)

    def forward(self, x: Tensor, jagged: Jagged) -> Tensor:
        """[P, D] -> [P, D], attending within each sequence."""
        # Padding follows the items, so the causal mask already hides it from all of them. The numbers
        # are those of left padding with a key mask, and the fast kernels apply.
        dim = x.shape[1]
        grid = jagged.padded(torch.cat([self.query(x), self.key(x), self.value(x)], dim=1))
        grid = grid.unflatten(2, (3, self.heads, dim // self.heads))
        query, key, value = grid.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(
            query, key, value, dropout_p=self.dropout if self.training else 0.0, is_causal=True
        )
        output: Tensor = self.out(jagged.unpadded(mixed.transpose(1, 2).flatten(2)))
        return output
