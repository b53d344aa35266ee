"""Samples to align, and what the ranks make of their slices of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from pad_dist.config import KernelName
from pad_dist.objectives.alignments.info_nce import contrast, info_nce
from pad_dist.objectives.alignments.mk_mmd import mk_mmd
from pad_dist.objectives.samples import once

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
Samples = tuple[Tensor, Tensor, Tensor]
KERNELS: tuple[KernelName, ...] = get_args(KernelName)
LOSSES: dict[str, Loss] = {kernel: partial(mk_mmd, kernel=kernel) for kernel in KERNELS}
LOSSES["infonce"] = partial(info_nce, temperature=0.2)
LOSSES["infonce of sub-vectors"] = partial(info_nce, temperature=0.2, sub_vectors=5)
LOSSES["contrast"] = partial(contrast, temperature=0.2)
STAND_ON = ([2, 5, 9], [5, 7, 9, 11])
"""Items of each rank."""


def make(seed: int, items: int, dim: int, most: int) -> Samples:
    """Text, anchor and weights from 0 to `most`."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(items, dim, dtype=torch.float64, generator=generator) + 3
    anchor = torch.randn(items, dim, dtype=torch.float64, generator=generator) * 0.5
    weights = torch.randint(0, most + 1, (items,), generator=generator).double()
    weights[0] = most
    return text, anchor, weights


def solve(loss: Loss, text: Tensor, anchor: Tensor, weights: Tensor) -> Samples:
    """Value and gradients."""
    text, anchor = text.clone().requires_grad_(), anchor.clone().requires_grad_()
    value = loss(text, anchor, weights)
    value.backward()
    assert text.grad is not None and anchor.grad is not None
    return value.detach(), text.grad, anchor.grad


def cases() -> list[tuple[Samples, int]]:
    """Samples and where two ranks cut them: uneven slices, an item on both, a rank with nothing, nothing at all."""
    text, anchor, weights = full = make(9, 21, 5, 4)
    repeated = (torch.cat([text, text[:2]]), torch.cat([anchor, anchor[:2]]), torch.cat([weights, weights[:2]]))
    return [(full, 8), (repeated, 21), (full, 21), ((text[:0], anchor[:0], weights[:0]), 0)]


def shares() -> tuple[list[float], dict[str, list[Any]]]:
    """This rank's weights of STAND_ON, and of each loss and case its share and gradients as arrays."""
    rank, found = dist.get_rank(), {}
    for name, loss in LOSSES.items():
        mine = [[x[:at] if rank == 0 else x[at:] for x in samples] for samples, at in cases()]
        found[name] = [[value.numpy() for value in solve(loss, *samples)] for samples in mine]
    return once(torch.tensor(STAND_ON[rank])).tolist(), found
