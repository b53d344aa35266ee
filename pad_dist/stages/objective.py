"""The dense module that DeepSpeed wraps: the model and the stage's loss."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pad_dist.config import Config, StageName
from pad_dist.data.batches import Batch, Rows
from pad_dist.model.gate import rarity_of
from pad_dist.model.pad import Output, Pad
from pad_dist.objectives.info_nce import contrast, info_nce
from pad_dist.objectives.mk_mmd import mk_mmd
from pad_dist.objectives.recommendation import (
    approx_ndcg_sum,
    bce_sum,
    gbce_beta,
    gbce_sum,
    log_partition,
    softmax_sum,
)
from pad_dist.objectives.samples import once as count_once
from pad_dist.stages.parts import frozen_experts, frozen_parameters, parts


class StageObjective(nn.Module):
    """Loss of one stage (METHOD, phases 1 to 3, baselines).

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
        self._parts = parts(config, stage)
        self._config = config
        self._catalogue = catalogue
        self._group = group
        self._world_size = dist.get_world_size(group) if group else 1
        self._frozen = frozen_experts(config, stage)
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
        if self._parts.recommends:
            loss = self._recommendation(output, batch, rows) / batch.positions.clamp(min=1)
        match self._parts.beside:
            case "align" if self._config.align.gamma:
                loss = loss + self._config.align.gamma * self._alignment(output, batch)
            case "ctrl":
                loss = loss + self._fine_grained(output, batch)
            case "rlmrec_con":
                loss = loss + self._config.rlmrec_con.weight * self._near_text(output, batch, rows["text"])
            case "rlmrec_gen":
                loss = loss + self._config.rlmrec_gen.weight * self._reconstruction(output, batch, rows)
        return loss * self._world_size

    def _recommendation(self, output: Output, batch: Batch, rows: Rows) -> Tensor:
        expected = self._expected(batch, rows)
        if len(output.users) == 1:
            (expert,) = output.users
            return self._recommend(output.users[expert], output.items[expert], batch, expected)
        settings = self._config.disentangle
        mixture = output.mixture(self._log_partitions(output, batch, expected))
        if settings.loss == "ndcg":
            power = settings.rare_power
            weights = rarity_of(rows["frequency"][batch.targets]) ** power if power else None
            odds = self._odds(batch, expected)
            loss = approx_ndcg_sum(*mixture, batch, odds, settings.ndcg_temperature, weights)
        else:
            loss = self._recommend(*mixture, batch, expected)
        if settings.expert_loss:
            for name in settings.trained:
                own = self._recommend(output.users[name], output.items[name], batch, expected)
                loss = loss + settings.expert_loss * own
        return loss

    def _log_partitions(self, output: Output, batch: Batch, expected: Tensor | None) -> Tensor | None:
        """[P, M] of each expert over the catalogue, where it is log-probabilities that are mixed."""
        if not self.pad.log_mix:
            return None
        odds = self._odds(batch, expected)
        found = [
            log_partition(u, v, batch, odds) for u, v in zip(output.users.values(), output.items.values(), strict=True)
        ]
        return torch.stack(found, dim=1)

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

    def _odds(self, batch: Batch, expected: Tensor | None) -> Tensor:
        """[U] expected count of each item among the negatives, if uniform ones are all there is."""
        drawn = min(len(batch.negatives), self._catalogue) / self._catalogue
        return torch.full((len(batch.items),), drawn, device=batch.items.device) if expected is None else expected

    def _alignment(self, output: Output, batch: Batch) -> Tensor:
        settings, group = self._config.align, self._group
        if settings.alignment == "infonce":
            return info_nce(*self._pairs(output, batch, once=True), settings.temperature, group)
        return mk_mmd(*self._pairs(output, batch, once=settings.samples == "unique"), group, settings.kernel)

    def _fine_grained(self, output: Output, batch: Batch) -> Tensor:
        settings = self._config.ctrl
        pairs = self._pairs(output, batch, once=True)
        return info_nce(*pairs, settings.temperature, self._group, settings.sub_vectors)

    def _pairs(self, output: Output, batch: Batch, *, once: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Projected texts, anchors and weights of the samples: occurrences, or each item once."""
        assert output.projected is not None and output.anchored is not None
        # An item without a row in a hashed table has zeros for an anchor: nothing to align with.
        sampled = (batch.occurrences > 0) & output.anchored.any(1)
        if once:
            sampled &= batch.items > 0
        weights = count_once(batch.items[sampled], self._group) if once else batch.occurrences[sampled]
        return output.projected[sampled], output.anchored[sampled], weights

    def _near_text(self, output: Output, batch: Batch, text: Tensor) -> Tensor:
        """RLMRec-Con: each item's row among the projected texts of the batch's items."""
        assert self.pad.head is not None
        rows, settings = output.items["id"], self._config.rlmrec_con
        sampled = (batch.occurrences > 0) & (batch.items > 0) & rows.any(1) & text.any(1)
        weights = count_once(batch.items[sampled], self._group)
        projected = self.pad.head(text[sampled].to(rows.dtype))
        return contrast(rows[sampled], projected, weights, settings.temperature, self._group)

    def _reconstruction(self, output: Output, batch: Batch, rows: Rows) -> Tensor:
        """RLMRec-Gen: what the encoder makes of each masked position among the texts of the masked items."""
        assert self.pad.head is not None
        asked = (rows["masked"] & rows["text"].any(1))[batch.inputs]
        items = batch.inputs[asked]
        # An item that is masked at several positions is one candidate, and its questions count as one.
        weights = count_once(batch.items[items], self._group)
        guessed = self.pad.head(output.users["id"][asked])
        return contrast(guessed, rows["text"][items], weights, self._config.rlmrec_gen.temperature, self._group)
