"""How a run config is refused."""

import pytest

from pad_dist.config.load import parse_config
from pad_dist.errors import UserError


def refusal(values: dict[str, object]) -> str:
    """The one line that refuses these values."""
    with pytest.raises(UserError) as error:
        parse_config({"name": "x", **values}, "run.yaml")
    message = str(error.value)
    assert message.startswith("run.yaml: ")
    assert "\n" not in message
    return message.removeprefix("run.yaml: ")
