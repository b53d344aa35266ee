"""What every test shares."""

import os
from pathlib import Path

import pytest

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
