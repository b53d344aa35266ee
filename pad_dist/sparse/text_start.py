"""First rows of an ID table from text vectors, reduced to its width (METHOD `llm_init`)."""

from __future__ import annotations

import torch
import torch.distributed as dist

from pad_dist.config import TextConfig
from pad_dist.data.text_table import read_text_rows
from pad_dist.sparse.row_shards import RowShards
from pad_dist.sparse.tables import Tables
from pad_dist.sparse.text_moments import moments, spectrum

_BLOCK_ROWS = 1 << 14


@torch.no_grad()
def fill_from_text(
    tables: Tables,
    dataset: str,
    text: TextConfig,
    *,
    std: float,
    device: torch.device,
    group: dist.ProcessGroup | None,
) -> None:
    """Fill the rows of items that have a text; the others, padding among them, stay as they are. Collective.

    A row is the item's vector, centred, in the directions of most variance (PCA, as in LLM2BERT4Rec,
    arXiv 2309.09261), scaled so that all of these rows have the root-mean-square `std`. The text table is at least
    as wide as the tables; `text.transform` does not count.

    Raises:
        UserError: see `text_manifest`, `moments`.
    """
    dim = tables.spec.dim
    vectors = RowShards(lambda start, stop: read_text_rows(dataset, text, start, stop), tables.spec.rows, device, group)
    found = moments(vectors, dataset, covariance=True)
    variances, directions = spectrum(vectors, found)
    projection = directions[:, :dim] * (std / variances[:dim].mean().sqrt())
    local = torch.cat(
        [
            # NaN says that the item has no text.
            ((block.double() - found.mean) @ projection).float().where(block.any(1, keepdim=True), torch.nan)
            for block in vectors.local.split(_BLOCK_ROWS)
        ]
    )
    reduced = RowShards(lambda *_: local.cpu().numpy(), tables.spec.rows, device, group)
    for first in range(0, tables.spec.rows, _BLOCK_ROWS):
        stop = first + _BLOCK_ROWS
        ranges = [(max(first, p.offsets[0]), min(stop, p.offsets[0] + len(p.tensor)), p) for p in tables.weights()]
        ranges = [(low, high, part) for low, high, part in ranges if low < high]
        # Every rank looks up once in each block, also one that holds no row of it.
        start = min((low for low, _, _ in ranges), default=0)
        new = reduced.lookup(torch.arange(start, max((high for _, high, _ in ranges), default=0), device=device))
        for low, high, part in ranges:
            row, column = part.offsets
            values = new[low - start : high - start, column : column + part.tensor.shape[1]]
            there = part.tensor[low - row : high - row]
            there.copy_(values.to(there.dtype).where(~values.isnan(), there))
