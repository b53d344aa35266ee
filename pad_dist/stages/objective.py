"""The dense module that DeepSpeed wraps: the model and the stage's loss."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor, nn

from pad_dist.config import Config, StageName
from pad_dist.data.batches import Batch, Rows
from pad_dist.model.pad import Output, Pad
from pad_dist.objectives.info_nce import info_nce
from pad_dist.objectives.mk_mmd import mk_mmd
from pad_dist.objectives.recommendation import bce_sum, gbce_beta, gbce_sum, softmax_sum
from pad_dist.objectives.samples import once
from pad_dist.stages.parts import frozen_parameters


class StageObjective(nn.Module):
    """Loss of one stage (METHOD, phases 1 to 3).

    The value is world_size times this rank's share of the GLOBAL loss, because both
    TorchRec and DeepSpeed then average gradients over ranks: the average of the
    ranks' values is the global loss, its gradient the same at any world size.
    """

    def __init__(
        self, pad: Pad, stage: StageName, config: Config, catalogue: int, group: dist.ProcessGroup | None
    ) -> None:
        """`catalogue` is the number of items that negatives are drawn from."""
        super().__init__()
        self.pad = pad
        self._stage = stage
        self._config = config
        self._catalogue = catalogue
        self._group = group
        self._world_size = dist.get_world_size(group) if group else 1
        self._frozen = config.disentangle.freeze if stage == "disentangle" else ()
        still = frozen_parameters(config, stage)
        for name, parameter in pad.named_parameters():
            parameter.requires_grad_(not name.startswith(still))

    def train(self, mode: bool = True) -> StageObjective:
        """A frozen expert scores without dropout, as it will at evaluation."""
        super().train(mode)
        for name in self._frozen:
            self.pad.experts[name].eval()
        return self

    def forward(self, batch: Batch, rows: Rows) -> Tensor:
        """Scalar loss; `batch.positions` is the global count."""
        rows = {name: row.detach() if name in self._frozen else row for name, row in rows.items()}
        output: Output = self.pad(batch, rows)
        loss = batch.positions.new_zeros(())
        align = self._config.align
        if self._stage != "align" or align.anchor:
            loss = self._recommendation(output, batch, self._expected(batch, rows)) / batch.positions.clamp(min=1)
        if self._stage == "align" and align.gamma:
            loss = loss + align.gamma * self._alignment(output, batch)
        return loss * self._world_size

    def _recommendation(self, output: Output, batch: Batch, expected: Tensor | None) -> Tensor:
        if self._stage != "disentangle":
            (expert,) = output.users
            return self._recommend(output.users[expert], output.items[expert], batch, expected)
        loss = self._recommend(*output.mixture(), batch, expected)
        if self._config.disentangle.expert_loss:
            for name in output.users:
                if name not in self._frozen:
                    own = self._recommend(output.users[name], output.items[name], batch, expected)
                    loss = loss + self._config.disentangle.expert_loss * own
        return loss

    def _recommend(self, users: Tensor, items: Tensor, batch: Batch, expected: Tensor | None) -> Tensor:
        loss = self._config.training.loss
        match loss.kind:
            case "bce":
                return bce_sum(users, items, batch)
            case "gbce":
                return gbce_sum(users, items, batch, gbce_beta(loss.negatives, self._catalogue, loss.gbce_t))
            case "sampled_softmax" | "softmax":
                return softmax_sum(users, items, batch, expected)

    def _expected(self, batch: Batch, rows: Rows) -> Tensor | None:
        """[U] expected count of each item among the negatives, for log-Q correction."""
        loss = self._config.training.loss
        if not loss.log_q:
            return None
        uniform = min(loss.negatives, self._catalogue)
        return uniform / self._catalogue + (len(batch.negatives) - uniform) * rows["share"]

    def _alignment(self, output: Output, batch: Batch) -> Tensor:
        assert output.projected is not None and output.anchored is not None
        settings, group = self._config.align, self._group
        # An item without a row in a hashed table has zeros for an anchor: nothing to align with.
        sampled = (batch.occurrences > 0) & output.anchored.any(1)
        if settings.alignment == "infonce" or settings.samples == "unique":
            sampled &= batch.items > 0
            weights = once(batch.items[sampled], group)
        else:
            weights = batch.occurrences[sampled]
        text, anchor = output.projected[sampled], output.anchored[sampled]
        if settings.alignment == "infonce":
            return info_nce(text, anchor, weights, settings.temperature, group)
        return mk_mmd(text, anchor, weights, group, settings.kernel)
