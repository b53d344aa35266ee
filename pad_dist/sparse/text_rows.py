"""The frozen text table as the model sees it: sharded rows, centred and scaled."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from pad_dist.data.text_table import read_text_rows, text_manifest
from pad_dist.errors import UserError
from pad_dist.sparse.row_shards import RowShards

_BLOCK_ROWS = 1 << 14
_LEAST_VARIANCE = 1e-9
"""Below what float16 rounding of unit vectors leaves."""


class TextRows:
    """Text embeddings of items 0..items; row 0 (padding) is zeros.

    With `center`, x becomes (x - mean) / rms over the catalogue: sentence encoders
    put a large common part into every vector, which says nothing about the item.
    """

    def __init__(
        self, dataset: str, items: int, *, center: bool, device: torch.device, group: dist.ProcessGroup | None
    ) -> None:
        self.dim = text_manifest(dataset).counts["dim"]
        self._shards = RowShards(lambda start, stop: read_text_rows(dataset, start, stop), items + 1, device, group)
        self._mean = torch.zeros(self.dim, device=device)
        self._scale = 1.0
        if center:
            moments = torch.zeros(2 * self.dim, dtype=torch.float64, device=device)
            for block in self._shards.local.split(_BLOCK_ROWS):
                rows = block.double()
                moments += torch.cat([rows.sum(0), rows.square().sum(0)])
            if group is not None:
                dist.all_reduce(moments, group=group)
            mean, squares = moments[: self.dim] / items, moments[self.dim :] / items
            self._mean = mean.float()
            variance = (squares - mean.square()).mean().item()
            if variance < _LEAST_VARIANCE:
                raise UserError(
                    f"all texts of {dataset} have the same vector: check data.columns.text, or set text.center=false"
                )
            self._scale = variance**-0.5

    def lookup(self, items: Tensor) -> Tensor:
        """items [U] ascending item_index -> [U, text_dim] float32. Collective."""
        rows = (self._shards.lookup(items).float() - self._mean) * self._scale
        return rows * (items > 0).unsqueeze(-1)
