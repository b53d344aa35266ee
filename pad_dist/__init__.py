"""Distributed training of LLM-enhanced sequential recommenders on Spark, TorchRec and DeepSpeed.

The names below are the public Python API; all others may change. They load on first use, so that a command which needs
no engine imports none.

    >>> import pad_dist
    >>> config = pad_dist.load_config("configs/demo.yaml", ["model.dim=32"])
    >>> [stage.name for stage in pad_dist.resolve_stages(config)]
    ['pretrain', 'align', 'disentangle']
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pad_dist.config.load import load_config
    from pad_dist.config.run import Config
    from pad_dist.dataset.reader import Dataset
    from pad_dist.errors import UserError
    from pad_dist.stages.methods import resolve_stages
    from pad_dist.stages.spec import StageSpec

__all__ = ["Config", "Dataset", "StageSpec", "UserError", "load_config", "resolve_stages"]

_MODULES = {
    "Config": "pad_dist.config.run",
    "Dataset": "pad_dist.dataset.reader",
    "StageSpec": "pad_dist.stages.spec",
    "UserError": "pad_dist.errors",
    "load_config": "pad_dist.config.load",
    "resolve_stages": "pad_dist.stages.methods",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'pad_dist' has no attribute {name!r}")
