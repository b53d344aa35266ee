"""What ranks see of a text table, and what tables start from it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from numpy.typing import NDArray

from pad_dist.config import SparseConfig, TextConfig
from pad_dist.sparse import text_start
from pad_dist.sparse.build import build_tables
from pad_dist.sparse.spec import TableSpec
from pad_dist.sparse.text_rows import TextRows

CPU = torch.device("cpu")


def looked_up(dataset: str, transform: str, items: int) -> NDArray[Any]:
    """All rows of the text table."""
    text = TextConfig.model_validate({"transform": transform})
    rows = TextRows(dataset, text, items, device=CPU, group=dist.group.WORLD)
    return rows.lookup(torch.arange(items + 1)).numpy()


def started(dataset: str, items: int, dim: int, std: float, settings: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """All rows of a table before and after it was started from the texts."""
    text_start._BLOCK_ROWS = 7  # several blocks, of which a rank holds few
    group = dist.group.WORLD if dist.is_initialized() and dist.get_world_size() > 1 else None
    tables = build_tables(
        TableSpec(("id",), items + 1, dim, 0.1, 0.0),
        SparseConfig.model_validate(settings),
        CPU,
        dist.get_world_size(group) if group else 1,
    )
    tables.initialise(seed=3, std=std)
    every = torch.arange(items + 1)
    with torch.no_grad():
        before = tables.lookup(every)["id"].clone()
        text_start.fill_from_text(tables, dataset, TextConfig(), std=std, device=CPU, group=group)
        return {"before": before.numpy(), "after": tables.lookup(every)["id"].clone().numpy()}
