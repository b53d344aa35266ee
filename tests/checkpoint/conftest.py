"""What the tests of checkpoints share."""

import uuid
from pathlib import Path

import pytest


@pytest.fixture(params=["folder", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A local folder, and a store at a URL."""
    return str(tmp_path) if request.param == "folder" else f"memory://{uuid.uuid4().hex}"
