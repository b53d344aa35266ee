"""MK-MMD: five Gaussian kernels, over the samples of all ranks (METHOD, MK-MMD)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

_POWERS = (1, 2, 4, 8, 16)
"""With k the widest kernel (a = 2), the others are its powers 2 / a: one exp, four squarings."""

_CHUNK_ELEMENTS = 1 << 18
"""Kernel values held at once: a chunk of rows small enough to stay in the processor's cache."""


def mk_mmd(text: Tensor, anchor: Tensor, weights: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """This rank's share of the multi-kernel maximum mean discrepancy between t and e.

    Item u stands for `weights[u]` samples on each side; the result equals METHOD's sum over
    single occurrences. In a process group the samples are those of all ranks (an item may stand
    on several), U may differ and may be 0. Every rank of the group must call.

    Args:
        text: [U, D] t.
        anchor: [U, D] e.
        weights: [U] occurrences, summing over ranks to n.
        group: defaults to all ranks, where torch.distributed is initialised.

    Returns:
        [] fp32 (fp64 if the inputs are). The shares of all ranks SUM to the global loss, and the
        gradient of `text` and `anchor` is that of the GLOBAL loss, not of the share: parameter
        gradients therefore sum over ranks too. Under engines that average over ranks (TorchRec,
        DeepSpeed) multiply by world_size, as for the other losses. 0 where n < 2.
    """
    dtype = torch.promote_types(torch.promote_types(text.dtype, anchor.dtype), torch.float32)
    text, anchor = text.to(dtype), anchor.to(dtype)
    weights = weights.to(dtype)
    share: Tensor = _MkMmd.apply(  # type: ignore[no-untyped-call]
        text, anchor, weights, *_gather(text, anchor, weights, group)
    )
    return share


@torch.no_grad()
def _gather(
    text: Tensor, anchor: Tensor, weights: Tensor, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The samples of all ranks: [N, D], [N, D], [N]; short ranks are filled up with weight 0."""
    if not dist.is_initialized() or dist.get_world_size(group) == 1:
        return text.detach(), anchor.detach(), weights
    most = torch.tensor(len(weights), device=text.device)
    dist.all_reduce(most, dist.ReduceOp.MAX, group)
    own = torch.cat([text, anchor, weights.unsqueeze(1)], dim=1)
    own = F.pad(own, (0, 0, 0, int(most) - len(own)))
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, own, group)
    every = torch.cat(parts)
    dim = text.shape[1]
    return every[:, :dim], every[:, dim:-1], every[:, -1]


class _MkMmd(torch.autograd.Function):
    """Loss and gradient in one pass over the rows of this rank's own samples.

    With w the weights, n their global sum and the signed pair weights
        c(x, y) = 2 / (n (n - 1)) on the same side, -2 / n^2 across the sides,
    the loss is 1/2 sum_xy w_x w_y c(x, y) K(x, y) plus constants. K is symmetric, so the own rows
    against all columns hold the whole global gradient of the own samples: backward needs no
    collective, and only that gradient [U, D] is kept, never the kernels.
    """

    @staticmethod
    def forward(
        ctx: Any, text: Tensor, anchor: Tensor, weights: Tensor, texts: Tensor, anchors: Tensor, all_weights: Tensor
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
        scale = (4 * torch.where(mean_distance > 0, mean_distance, 1)).rsqrt()
        columns *= scale
        same, across = 2 * all_weights / (n * (n - 1)), -2 * all_weights / n**2
        text_loss, text_grad = _rows((text - center) * scale, columns, torch.cat([same, across]), weights)
        anchor_loss, anchor_grad = _rows((anchor - center) * scale, columns, torch.cat([across, same]), weights)
        ctx.save_for_backward(text_grad * scale, anchor_grad * scale)
        # Off go the pairs of a sample with itself (each kernel is 1 there); METHOD adds 2 / (n - 1).
        constant = (2 - 2 * len(_POWERS)) * weights.sum() / (n * (n - 1))
        return (text_loss + anchor_loss) / 2 + constant

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        text_grad, anchor_grad = ctx.saved_tensors
        return gradient * text_grad, gradient * anchor_grad, None, None, None, None


def _rows(x: Tensor, y: Tensor, pair_weights: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """sum_xy w_x c_y K(x, y) and its gradient, in x [U, D]; y is [N, D], scaled to k = exp(-|x - y|^2)."""
    y_norm = y.square().sum(dim=1)
    weighted = torch.cat([y, y.new_ones(len(y), 1)], dim=1) * pair_weights.unsqueeze(1)
    total = x.new_zeros(())
    gradients = [x.new_zeros(0, x.shape[1])]
    size = max(1, _CHUNK_ELEMENTS // len(y))
    for rows, w in zip(torch.split(x, size), torch.split(weights, size), strict=True):
        kernel = (2 * rows) @ y.T
        kernel.sub_(y_norm).sub_(rows.square().sum(dim=1, keepdim=True)).clamp_(max=0).exp_()
        value, slope = kernel.clone(), kernel.clone()
        for power in _POWERS[1:]:
            kernel.square_()
            value += kernel
            slope.add_(kernel, alpha=power)
        total = total + w @ (value @ pair_weights)
        pulled = slope @ weighted
        gradients.append(2 * w.unsqueeze(1) * (pulled[:, :-1] - pulled[:, -1:] * rows))
    return total, torch.cat(gradients)
