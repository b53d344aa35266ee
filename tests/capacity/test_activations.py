"""The values that a plan counts for a backbone, against what autograd keeps of a forward for its backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pad_dist.config import ModelConfig
from pad_dist.config.keys import kind_of, sections_at
from pad_dist.model.backbones.base import build_backbone

SHAPES = [(64, 20, 32), (128, 50, 16)]
"""Width, length of the sequences and their number."""
KINDS = sorted(kind_of(section) for section in sections_at(ModelConfig, ["backbone"]))
OTHER_SETTINGS: list[dict[str, Any]] = [
    {"kind": "sasrec", "blocks": 3, "heads": 4, "norm": "post", "positions": "end"},
    {"kind": "ligr", "blocks": 2, "heads": 1, "positions": "end"},
    {"kind": "gru4rec", "layers": 3},
    {"kind": "caser", "window": 8},
    {"kind": "caser", "horizontal": 32},
    {"kind": "caser", "vertical": 8},
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backbone", [*({"kind": kind} for kind in KINDS), *OTHER_SETTINGS], ids=str)
def test_a_backbone_counts_all_that_its_backward_needs_and_at_most_three_times_that(
    backbone: dict[str, Any], shape: tuple[int, int, int]
) -> None:
    dim, length, sequences = shape
    model = ModelConfig.model_validate({"backbone": backbone, "dim": dim, "max_length": length})
    module = build_backbone(model).train()
    vectors = torch.randn(sequences * length, dim, requires_grad=True)
    kept = saved_bytes(module, vectors, torch.full((sequences,), length)) / vectors.element_size() / len(vectors)
    assert kept > dim
    assert kept <= module.activation_values(model.backbone, model) <= 3 * kept


def saved_bytes(module: torch.nn.Module, *inputs: Tensor) -> int:
    """Bytes that autograd keeps, each storage once, without the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    saved: dict[int, Tensor] = {}  # tensors, so that no storage takes the place of another

    def save(tensor: Tensor) -> Tensor:
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        output = module(*inputs)
    assert output.requires_grad
    return sum(tensor.untyped_storage().nbytes() for place, tensor in saved.items() if place not in weights)
