"""Sends values to the ranks that own them, and answers back."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class Exchange:
    """One all-to-all and its reverse; without a group this process owns everything."""

    def __init__(self, counts: Tensor, group: dist.ProcessGroup | None) -> None:
        """counts: [world_size] how many values go to each rank. Collective."""
        self._group = group
        if group is None:
            return
        received = torch.empty_like(counts)
        dist.all_to_all_single(received, counts, group=group)
        self._sent, self._received = counts.tolist(), received.tolist()

    def to_owners(self, values: Tensor) -> Tensor:
        """[sent, ...] grouped by owner, in rank order -> [received, ...] of all ranks. Collective."""
        return values if self._group is None else self._move(values, self._received, self._sent)

    def to_senders(self, answers: Tensor) -> Tensor:
        """[received, ...] -> [sent, ...], each answer in the place of its value. Collective."""
        return answers if self._group is None else self._move(answers, self._sent, self._received)

    def _move(self, values: Tensor, receive: list[int], send: list[int]) -> Tensor:
        moved = values.new_empty(sum(receive), *values.shape[1:])
        dist.all_to_all_single(moved, values.contiguous(), receive, send, group=self._group)
        return moved
