"""MK-MMD: five Gaussian kernels, or another kernel, over the samples of all ranks (docs/method.md, "MK-MMD")."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from pad_dist.config import KernelName, MkMmdConfig
from pad_dist.objectives.alignments.base import ALIGNMENTS, Alignment
from pad_dist.objectives.samples import alone, gather, unit

_POWERS = (1, 2, 4, 8, 16)
"""With k the widest kernel (a = 2), the others are its powers 2 / a: one exp and four squarings."""

_CHUNK_ELEMENTS = 1 << 18
"""Kernel values in memory at once: a chunk of rows that stays in the processor's cache."""


@ALIGNMENTS.register(MkMmdConfig)
class MkMmd(Alignment):
    """See `mk_mmd`."""

    def __init__(self, config: MkMmdConfig, group: dist.ProcessGroup | None) -> None:
        super().__init__(config, group)
        self.counts_items_once = config.samples == "unique"

    def __call__(self, text: Tensor, row: Tensor, weights: Tensor) -> Tensor:
        return mk_mmd(text, row, weights, self._group, self._config.kernel)


def mk_mmd(
    text: Tensor,
    anchor: Tensor,
    weights: Tensor,
    group: dist.ProcessGroup | None = None,
    kernel: KernelName = "gaussian_mixture",
) -> Tensor:
    """This rank's share of the multi-kernel maximum mean discrepancy between t and e.

    Item u counts as `weights[u]` samples on each side; the result equals the sum over single
    occurrences. In a process group the samples are those of all ranks. An item may occur on
    several ranks, U may differ and may be 0. Every rank of the group must call.

    Args:
        text: [U, D] t.
        anchor: [U, D] e.
        weights: [U] occurrences, summing over ranks to n.
        group: defaults to all ranks, if torch.distributed is initialised.
        kernel: K of the formula, see `MkMmdConfig.kernel`.

    Returns:
        [] fp32 (fp64 if the inputs are). The shares of all ranks SUM to the global loss, and the
        gradient of `text` and `anchor` is that of the GLOBAL loss, not of the share: parameter
        gradients therefore sum over ranks too. Under engines that average over ranks (TorchRec,
        DeepSpeed) multiply by world_size, as for the other losses. 0 if n < 2.
    """
    dtype = torch.promote_types(torch.promote_types(text.dtype, anchor.dtype), torch.float32)
    text, anchor = text.to(dtype), anchor.to(dtype)
    weights = weights.to(dtype)
    if kernel == "cosine":
        text, anchor = unit(text), unit(anchor)
    if kernel in ("linear", "cosine"):
        return _linear(text, anchor, weights, group)
    samples, dim = gather(torch.cat([text, anchor, weights.unsqueeze(1)], dim=1), group), text.shape[1]
    share: Tensor = _MkMmd.apply(  # type: ignore[no-untyped-call]
        text, anchor, weights, samples[:, :dim], samples[:, dim:-1], samples[:, -1], _KERNELS[kernel]
    )
    return share


def _linear(text: Tensor, anchor: Tensor, weights: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """K = <x, y>: the squared distance of the two means, less the part of a sample's pairs with itself."""
    sums = weights @ torch.cat([text, anchor, torch.ones_like(text[:, :1])], dim=1).detach()
    if not alone(group):
        dist.all_reduce(sums, group=group)
    dim, n = text.shape[1], sums[-1]
    if n < 2:
        return 0 * (text.sum() + anchor.sum())
    text_mean, anchor_mean = sums[:dim] / n, sums[dim:-1] / n
    apart = weights @ (text - anchor) @ (text_mean - anchor_mean) / n
    spread = weights @ ((text - text_mean).square() + (anchor - anchor_mean).square()).sum(dim=1) / (n * (n - 1))
    # The gradient of a square is twice that of a product with one factor fixed.
    return 2 * apart - apart.detach() - spread + 2 * weights.sum() / (n * (n - 1))


class _Kernel(NamedTuple):
    """A kernel of the distance.

    Attributes:
        width: |x - y|^2 is divided by width * m, m the mean squared distance of all pairs.
        at_zero: K(x, x).
        of: -|x - y|^2, which it may overwrite -> K and the derivative of K in it.
    """

    width: float
    at_zero: int
    of: Callable[[Tensor], tuple[Tensor, Tensor]]


def _gaussians(powers: tuple[int, ...], minus: Tensor) -> tuple[Tensor, Tensor]:
    kernel = minus.exp_()
    value, slope = kernel.clone(), kernel.clone()
    for power in powers[1:]:
        kernel.square_()
        value += kernel
        slope.add_(kernel, alpha=power)
    return value, slope


def _laplace(minus: Tensor) -> tuple[Tensor, Tensor]:
    # A smaller distance is rounding error around 0, where K has no slope.
    distance = F.threshold(minus.neg_().sqrt_(), 8 * torch.finfo(minus.dtype).eps ** 0.5, 0)
    value = torch.exp(-distance)
    return value, torch.where(distance > 0, value / (2 * distance), 0)


_KERNELS: dict[str, _Kernel] = {
    "gaussian_mixture": _Kernel(4, len(_POWERS), partial(_gaussians, _POWERS)),
    "gaussian": _Kernel(2, 1, partial(_gaussians, (1,))),
    "laplace": _Kernel(1, 1, _laplace),
}


class _MkMmd(torch.autograd.Function):
    """Loss and gradient in one pass over the rows of this rank's samples.

    With w the weights, n their global sum and the signed pair weights
        c(x, y) = 2 / (n (n - 1)) on the same side, -2 / n^2 across the sides,
    the loss is 1/2 sum_xy w_x w_y c(x, y) K(x, y) plus constants. K is symmetric, so the local rows
    against all columns give the full global gradient of the local samples: backward needs no
    collective, and only that gradient [U, D] is kept, never the kernels.
    """

    @staticmethod
    def forward(
        ctx: Any,
        text: Tensor,
        anchor: Tensor,
        weights: Tensor,
        texts: Tensor,
        anchors: Tensor,
        all_weights: Tensor,
        kernel: _Kernel,
    ) -> Tensor:
        n = all_weights.sum()
        if n < 2:
            ctx.save_for_backward(torch.zeros_like(text), torch.zeros_like(anchor))
            return text.new_zeros(())
        # Distances ignore a common shift; near the origin |x|^2 + |y|^2 - 2xy loses least.
        share = all_weights / (2 * n)
        center = share @ texts + share @ anchors
        columns = torch.cat([texts, anchors]) - center
        mean_distance = 2 * (torch.cat([share, share]) @ columns.square().sum(dim=1))
        scale = (kernel.width * torch.where(mean_distance > 0, mean_distance, 1)).rsqrt()
        columns *= scale
        same, across = 2 * all_weights / (n * (n - 1)), -2 * all_weights / n**2
        text_loss, text_grad = _rows((text - center) * scale, columns, torch.cat([same, across]), weights, kernel)
        anchor_loss, anchor_grad = _rows((anchor - center) * scale, columns, torch.cat([across, same]), weights, kernel)
        ctx.save_for_backward(text_grad * scale, anchor_grad * scale)
        # Take off the pairs of a sample with itself (each Gaussian is 1 for them); the formula adds 2 / (n - 1).
        constant = (2 - 2 * kernel.at_zero) * weights.sum() / (n * (n - 1))
        return (text_loss + anchor_loss) / 2 + constant

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        text_grad, anchor_grad = ctx.saved_tensors
        return gradient * text_grad, gradient * anchor_grad, None, None, None, None, None


def _rows(x: Tensor, y: Tensor, pair_weights: Tensor, weights: Tensor, kernel: _Kernel) -> tuple[Tensor, Tensor]:
    """sum_xy w_x c_y K(x, y) and its gradient, in x [U, D]; y is [N, D], both scaled to the kernel's width."""
    y_norm = y.square().sum(dim=1)
    weighted = torch.cat([y, y.new_ones(len(y), 1)], dim=1) * pair_weights.unsqueeze(1)
    total = x.new_zeros(())
    gradients = [x.new_zeros(0, x.shape[1])]
    size = max(1, _CHUNK_ELEMENTS // len(y))
    for rows, w in zip(torch.split(x, size), torch.split(weights, size), strict=True):
        minus = (2 * rows) @ y.T
        minus.sub_(y_norm).sub_(rows.square().sum(dim=1, keepdim=True)).clamp_(max=0)
        value, slope = kernel.of(minus)
        total = total + w @ (value @ pair_weights)
        pulled = slope @ weighted
        gradients.append(2 * w.unsqueeze(1) * (pulled[:, :-1] - pulled[:, -1:] * rows))
    return total, torch.cat(gradients)
