"""InfoNCE as in CLIP: which text belongs to which item, over the samples of all ranks (METHOD, baselines)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from pad_dist.objectives.samples import gather, unit

_CHUNK_ELEMENTS = 1 << 20
"""Logits held at once."""


def info_nce(
    text: Tensor, anchor: Tensor, weights: Tensor, temperature: float, group: dist.ProcessGroup | None = None
) -> Tensor:
    """This rank's share of the symmetric cross-entropy between t and e, both L2-normalised.

    Item u counts `weights[u]` times: as a question, and among the candidates of every question. With the weights of
    `once` an item that stands on several ranks is one, and no pair of it is a negative. Every rank must call.

    Args:
        text: [U, D] t.
        anchor: [U, D] e.
        weights: [U], summing over ranks to n.
        temperature: divides the cosines.
        group: defaults to all ranks, where torch.distributed is initialised.

    Returns:
        [] fp32 (fp64 if the inputs are), value and gradient shared out over ranks as those of `mk_mmd`. 0 where n = 0.
    """
    dtype = torch.promote_types(torch.promote_types(text.dtype, anchor.dtype), torch.float32)
    text, anchor = unit(text.to(dtype)), unit(anchor.to(dtype))
    weights = weights.to(dtype)
    samples = gather(torch.cat([text, anchor, weights.unsqueeze(1)], dim=1), group)
    dim = text.shape[1]
    texts, anchors, all_weights = samples[:, :dim] / temperature, samples[:, dim:-1] / temperature, samples[:, -1]
    with torch.no_grad():
        # Of each own text among all anchors, and of each own anchor among all texts.
        norms = torch.stack([_log_sums(text, anchors, all_weights), _log_sums(anchor, texts, all_weights)], dim=1)
        all_norms = gather(norms, group)
        text_pull = _pulls(text, anchors, all_weights, norms[:, 0], all_norms[:, 1])
        anchor_pull = _pulls(anchor, texts, all_weights, norms[:, 1], all_norms[:, 0])
    n = all_weights.sum().clamp(min=1)
    own = (text * anchor).sum(dim=1) / temperature
    # An own sample is a candidate of other ranks too: the pulls hold all that it does to the global sums.
    pulled = weights @ ((text * text_pull).sum(dim=1) + (anchor * anchor_pull).sum(dim=1))
    share: Tensor = (weights @ (norms.sum(dim=1) - 2 * own) + pulled - pulled.detach()) / (2 * n)
    return share


def _log_sums(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """[U] log of sum_v w_v exp <x_u, y_v>."""
    chunks = torch.split(x, max(1, _CHUNK_ELEMENTS // max(1, len(y))))
    return torch.cat([(rows @ y.T + weights.log()).logsumexp(dim=1) for rows in chunks])


def _pulls(x: Tensor, y: Tensor, weights: Tensor, norms: Tensor, all_norms: Tensor) -> Tensor:
    """[U, D] sum_v w_v (p_uv + q_uv) y_v: the share of y_v in the sum of x_u, and that of x_u in the sum of y_v."""
    size = max(1, _CHUNK_ELEMENTS // max(1, len(y)))
    found = []
    for rows, own in zip(torch.split(x, size), torch.split(norms, size), strict=True):
        logits = rows @ y.T + weights.log()
        found.append(((logits - own.unsqueeze(1)).exp() + (logits - all_norms).exp()) @ y)
    return torch.cat(found)
