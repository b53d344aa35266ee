"""The frozen text table as the model sees it: sharded rows, centred and scaled."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from pad_dist.config import TextConfig
from pad_dist.data.text_table import read_text_rows, text_manifest
from pad_dist.errors import UserError
from pad_dist.sparse.row_shards import RowShards

_BLOCK_ROWS = 1 << 14
_LEAST_VARIANCE = 1e-9
"""Below what float16 rounding of unit vectors leaves."""


class TextRows:
    """Text embeddings of items 0..items; rows without a text (padding, erased items) are zeros.

    With `text.center`, x becomes (x - mean) / rms over the items that have a text:
    sentence encoders put a large common part into every vector, which says nothing
    about the item.
    """

    def __init__(
        self, dataset: str, text: TextConfig, items: int, *, device: torch.device, group: dist.ProcessGroup | None
    ) -> None:
        """Read this rank's rows of the vectors that `dataset` (a root or a version) has under `text`.

        Raises:
            UserError: there are none (see `text_manifest`), or all are the same.
        """
        self.dim = text_manifest(dataset, text).counts["dim"]
        self._shards = RowShards(
            lambda start, stop: read_text_rows(dataset, text, start, stop), items + 1, device, group
        )
        self._mean = torch.zeros(self.dim, device=device)
        self._scale = 1.0
        if text.center:
            moments = torch.zeros(2 * self.dim + 1, dtype=torch.float64, device=device)
            for block in self._shards.local.split(_BLOCK_ROWS):
                rows = block.double()
                moments += torch.cat([rows.sum(0), rows.square().sum(0), rows.any(1).sum()[None]])
            if group is not None:
                dist.all_reduce(moments, group=group)
            mean, squares = (moments[:-1] / moments[-1]).split(self.dim)
            self._mean = mean.float()
            variance = (squares - mean.square()).mean().item()
            # Not `<`, which is false too for the NaN of a catalogue without any text.
            if not variance >= _LEAST_VARIANCE:
                raise UserError(
                    f"all texts of {dataset} have the same vector: check data.columns.text, or set text.center=false"
                )
            self._scale = variance**-0.5

    def lookup(self, items: Tensor) -> Tensor:
        """items [U] ascending item_index -> [U, text_dim] float32. Collective."""
        rows = self._shards.lookup(items).float()
        return (rows - self._mean) * self._scale * rows.any(1, keepdim=True)
