"""The frozen text table as the model sees it: sharded rows, centred and scaled or whitened."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from pad_dist.config import TextConfig
from pad_dist.dataset.text_table import read_text_rows, text_manifest
from pad_dist.sparse.row_shards import RowShards
from pad_dist.sparse.text_moments import moments, spectrum

_BLOCK_ROWS = 1 << 14
_WHITENING_EPS = 1e-5
"""Added to the variances, in units of their mean, so that directions that no text uses are not blown up."""


class TextRows:
    """Text embeddings of items 0..items; rows without a text (padding, erased items) are zeros.

    `text.transform` sets what becomes of a vector x, with moments over the items that have a text.
    `none`: x. `center`: (x - mean) / rms, as sentence encoders add a large common part to every
    vector, which says nothing about the item. `whiten`: (x - mean) (C / rms^2 + eps)^(-w/2) / rms
    with the covariance C and w = `text.whitening`; w = 1 is ZCA, as in WhitenRec (arXiv 2402.10602).
    """

    def __init__(
        self, dataset: str, text: TextConfig, items: int, *, device: torch.device, group: dist.ProcessGroup | None
    ) -> None:
        """Read this rank's rows of the vectors that `dataset` (a root or a version) has under `text`.

        Raises:
            UserError: it has none (see `text_manifest`), or all are the same.
        """
        self.dim = text_manifest(dataset, text).counts["dim"]
        self._shards = RowShards(
            lambda start, stop: read_text_rows(dataset, text, start, stop), items + 1, device, group
        )
        self._mean = torch.zeros(self.dim, device=device)
        self._scale = 1.0
        if text.transform == "none":
            return
        stats = moments(self._shards, dataset, covariance=text.transform == "whiten")
        if text.transform == "center":
            self._mean, self._scale = stats.mean.float(), stats.variance**-0.5
            return
        variances, directions = spectrum(self._shards, stats)
        factors = (variances / stats.variance + _WHITENING_EPS).pow(-text.whitening / 2) * stats.variance**-0.5
        matrix = directions * factors @ directions.T
        # Applied once, because it costs more than a step's look-up.
        for block in self._shards.local.split(_BLOCK_ROWS):
            block.copy_((block.double() - stats.mean) @ matrix * block.any(1, keepdim=True))

    def lookup(self, items: Tensor) -> Tensor:
        """items [U] ascending item_index -> [U, text_dim] float32. Collective."""
        rows = self._shards.lookup(items).float()
        return (rows - self._mean) * self._scale * rows.any(1, keepdim=True)
