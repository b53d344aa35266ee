"""Converts between sequences stored end to end and a padded grid."""

from __future__ import annotations

import torch
from torch import Tensor


class Jagged:
    """Maps P positions, B sequences end to end, to their slots in a grid of B rows.

    Attributes:
        left: [P] positions left in the sequence, this one included: 1 at the last.
    """

    def __init__(self, lengths: Tensor, total: int, max_length: int) -> None:
        """`lengths` [B], each at most `max_length`, sum to `total`; B may be 0."""
        self._batch, self._max_length = lengths.numel(), max_length
        places = torch.arange(total, device=lengths.device)
        ends = lengths.cumsum(0).repeat_interleave(lengths, output_size=total)
        sequences = torch.arange(self._batch, device=lengths.device).repeat_interleave(lengths, output_size=total)
        self.left = ends - places
        sequence_lengths = lengths.repeat_interleave(lengths, output_size=total)
        self._slots = sequences * max_length + sequence_lengths - self.left

    def padded(self, x: Tensor) -> Tensor:
        """[P, C] -> [B, L, C]: sequences start at column 0, zeros follow them."""
        grid = x.new_zeros(self._batch * self._max_length, x.shape[1]).index_copy(0, self._slots, x)
        return grid.view(self._batch, self._max_length, x.shape[1])

    def unpadded(self, grid: Tensor) -> Tensor:
        """[B, L, C] -> [P, C]."""
        return grid.reshape(self._batch * self._max_length, grid.shape[2]).index_select(0, self._slots)
