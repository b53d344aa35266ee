"""The dense module that DeepSpeed wraps: the model and the stage's loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pad_dist.data.batches import Batch, Rows
from pad_dist.model.gate import rarity_of
from pad_dist.model.recommender import Output, Recommender
from pad_dist.objectives.auxiliary.base import AuxiliaryLoss
from pad_dist.objectives.losses.base import build_loss
from pad_dist.objectives.mixture import approx_ndcg_sum, expected_counts, log_partition, uniform_counts
from pad_dist.stages.spec import StageSpec


class StageObjective(nn.Module):
    """Loss of one stage (docs/method.md, "Phase 1: pre-train" to "Baselines").

    The value is world_size times this rank's share of the GLOBAL loss, because both
    TorchRec and DeepSpeed then average gradients over ranks: the average of the
    ranks' values is the global loss, its gradient the same at any world size.
    """

    def __init__(
        self, spec: StageSpec, model: Recommender, auxiliary: AuxiliaryLoss | None, catalogue: int, world_size: int
    ) -> None:
        """`catalogue` is the number of items that negatives are drawn from."""
        super().__init__()
        self.model = model
        self._spec, self._auxiliary = spec, auxiliary
        self._negatives = spec.config.training.loss
        self._loss = build_loss(self._negatives, catalogue)
        self._catalogue, self._world_size = catalogue, world_size
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(spec.frozen_prefixes))

    def train(self, mode: bool = True) -> StageObjective:
        """A frozen expert scores without dropout, as it will at evaluation."""
        super().train(mode)
        for name in self._spec.frozen:
            self.model.experts[name].eval()
        return self

    def forward(self, batch: Batch, rows: Rows) -> Tensor:
        """Scalar loss; `batch.positions` is the global count."""
        rows = {name: row.detach() if name in self._spec.frozen else row for name, row in rows.items()}
        output: Output = self.model(batch, rows)
        loss = batch.positions.new_zeros(())
        if self._spec.recommends:
            loss = self._recommendation(output, batch, rows) / batch.positions.clamp(min=1)
        if self._auxiliary is not None:
            loss = loss + self._auxiliary(output, batch, rows, self.model.head)
        return loss * self._world_size

    def _recommendation(self, output: Output, batch: Batch, rows: Rows) -> Tensor:
        expected = expected_counts(self._negatives, self._catalogue, batch, rows)
        settings = self._spec.mixture
        if settings is None:
            (expert,) = output.users
            return self._loss(output.users[expert], output.items[expert], batch, expected)
        odds = uniform_counts(self._catalogue, batch) if expected is None else expected
        users, items = output.mixture(self._log_partitions(output, batch, odds))
        if settings.loss == "ndcg":
            power = settings.rare_power
            weights = rarity_of(rows["frequency"][batch.targets]) ** power if power else None
            loss = approx_ndcg_sum(users, items, batch, odds, settings.ndcg_temperature, weights)
        else:
            loss = self._loss(users, items, batch, expected)
        if settings.expert_loss:
            for name in settings.trained:
                own = self._loss(output.users[name], output.items[name], batch, expected)
                loss = loss + settings.expert_loss * own
        return loss

    def _log_partitions(self, output: Output, batch: Batch, odds: Tensor) -> Tensor | None:
        """[P, M] of each expert over the catalogue, where log-probabilities are mixed."""
        if not self.model.log_mix:
            return None
        pairs = zip(output.users.values(), output.items.values(), strict=True)
        return torch.stack([log_partition(users, items, batch, odds) for users, items in pairs], dim=1)
