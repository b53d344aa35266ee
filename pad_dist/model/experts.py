"""The experts: an item vector and a sequence encoder each (METHOD, phases 1 to 3; the neighbours are ours).

An item's vector is the same where the item is read and where it is predicted.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pad_dist.config import ExpertName, ModelConfig
from pad_dist.data.batches import Rows
from pad_dist.model.encoder import build_encoder
from pad_dist.model.projector import Projector
from pad_dist.model.recency import RecencySum


class Expert(nn.Module):
    """An encoder and a way to make item vectors of looked-up rows, both `dim` wide."""

    def __init__(self, encoder: nn.Module, dim: int) -> None:
        super().__init__()
        self.encoder, self.dim = encoder, dim

    def item_vectors(self, rows: Rows) -> Tensor:
        """[U, dim] vectors of the items whose rows were looked up."""
        raise NotImplementedError


class IdExpert(Expert):
    """Item vector = row of the ID table."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(build_encoder(config), config.dim)

    def item_vectors(self, rows: Rows) -> Tensor:
        """[U, D] from `rows["id"]`."""
        return rows["id"]


class TextExpert(Expert):
    """Item vector = projected text."""

    def __init__(self, config: ModelConfig, text_dim: int) -> None:
        super().__init__(build_encoder(config), config.dim)
        self.projector = Projector(config, text_dim)

    def item_vectors(self, rows: Rows) -> Tensor:
        """[U, D] from `rows["text"]`."""
        vectors: Tensor = self.projector(rows["text"])
        return vectors


class AlignedExpert(Expert):
    """Item vector = fusion of a row of the aligned table with projected text."""

    def __init__(self, config: ModelConfig, text_dim: int) -> None:
        super().__init__(build_encoder(config), config.dim)
        self.projector = Projector(config, text_dim)
        self.row_dropout = config.row_dropout
        self.fusion = (
            nn.Sequential(nn.Dropout(config.dropout), nn.Linear(2 * config.dim, config.dim), nn.GELU())
            if config.fusion == "concat"
            else None
        )

    def sides(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """What is aligned: projected text t and anchor e, [U, D] each."""
        return self.projector(rows["text"]), rows["aligned"]

    def fuse(self, text: Tensor, anchor: Tensor) -> Tensor:
        """[U, D] item vectors of both sides; in training some rows are left out, whole and without rescaling."""
        if self.training and self.row_dropout:
            anchor = anchor * (torch.rand(len(anchor), 1, device=anchor.device) >= self.row_dropout)
        if self.fusion is None:
            return anchor + text
        vectors: Tensor = self.fusion(torch.cat([anchor, text], dim=1))
        return vectors

    def item_vectors(self, rows: Rows) -> Tensor:
        """[U, D] from `rows["aligned"]` and `rows["text"]`."""
        return self.fuse(*self.sides(rows))


class NeighboursExpert(Expert):
    """Item vector = its text at length 1, user vector = sum of the last items': nothing is learned."""

    def __init__(self, config: ModelConfig, text_dim: int) -> None:
        super().__init__(RecencySum(config.neighbours, config.max_length), text_dim)

    def item_vectors(self, rows: Rows) -> Tensor:
        """[U, text_dim] from `rows["text"]`; zeros for an item without a text."""
        return F.normalize(rows["text"], dim=1)


def build_expert(name: ExpertName, config: ModelConfig, text_dim: int) -> Expert:
    """The expert of that name; `text_dim` is the width of the text embeddings."""
    if name == "id":
        return IdExpert(config)
    of_texts = {"aligned": AlignedExpert, "text": TextExpert, "neighbours": NeighboursExpert}
    return of_texts[name](config, text_dim)
