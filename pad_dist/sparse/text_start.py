"""Initial rows of an ID table from text vectors, reduced to its width (`llm_init` in docs/method.md, "Baselines")."""

from __future__ import annotations

import torch
import torch.distributed as dist

from pad_dist.config import TextConfig
from pad_dist.dataset.text_table import read_text_rows
from pad_dist.sparse.row_shards import RowShards
from pad_dist.sparse.spec import Tables
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
    """Fill the rows of items that have a text; the others, padding included, stay unchanged. Collective.

    A row is the item's centred vector in the directions of most variance (PCA, as in LLM2BERT4Rec,
    arXiv 2309.09261), scaled so that all of these rows have the root-mean-square `std`. The text table is at least
    as wide as the tables. `text.transform` has no effect.

    Raises:
        UserError: see `text_manifest`, `moments`.
    """
    dim = tables.spec.dim
    vectors = RowShards(lambda start, stop: read_text_rows(dataset, text, start, stop), tables.spec.rows, device, group)
    stats = moments(vectors, dataset, covariance=True)
    variances, directions = spectrum(vectors, stats)
    projection = directions[:, :dim] * (std / variances[:dim].mean().sqrt())
    local = torch.cat(
        [
            # NaN means that the item has no text.
            ((block.double() - stats.mean) @ projection).float().where(block.any(1, keepdim=True), torch.nan)
            for block in vectors.local.split(_BLOCK_ROWS)
        ]
    )
    reduced = RowShards(lambda *_: local.cpu().numpy(), tables.spec.rows, device, group)
    for first in range(0, tables.spec.rows, _BLOCK_ROWS):
        stop = first + _BLOCK_ROWS
        ranges = [(max(first, s.offsets[0]), min(stop, s.offsets[0] + len(s.tensor)), s) for s in tables.weights()]
        ranges = [(low, high, shard) for low, high, shard in ranges if low < high]
        # Look-ups are collective: every rank makes one per block, even if it holds no row of it.
        start = min((low for low, _, _ in ranges), default=0)
        new = reduced.lookup(torch.arange(start, max((high for _, high, _ in ranges), default=0), device=device))
        for low, high, shard in ranges:
            row, column = shard.offsets
            values = new[low - start : high - start, column : column + shard.tensor.shape[1]]
            target = shard.tensor[low - row : high - row]
            target.copy_(values.to(target.dtype).where(~values.isnan(), target))
