"""What every test shares."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pad_dist.distributed.context import DistributedContext

# Before torch is imported anywhere: more threads than cores makes ranks spin instead of working.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(__file__).parents[1]


@pytest.fixture
def shared_data() -> Path:
    """Real data sets that lie beside a developer's checkout."""
    data = ROOT.parent / "shared" / "data"
    if not data.is_dir():
        pytest.skip(f"no real data at {data}")
    return data


@pytest.fixture(scope="module")
def context() -> Iterator[DistributedContext]:
    """This process as the only rank."""
    import torch
    import torch.distributed as dist

    from pad_dist.distributed.context import DistributedContext

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    assert dist.group.WORLD is not None
    yield DistributedContext(0, 1, torch.device("cpu"), dist.group.WORLD)
    dist.destroy_process_group()
