"""One stage on one rank: data, tables, frozen rows and dense model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
from torch import Tensor

from pad_dist.checkpoint.files import best_checkpoint, checkpoint_meta, load_dense, load_first_rows, load_shards
from pad_dist.config import Config
from pad_dist.data.batches import Batch, EvalBatch, Rows
from pad_dist.dataset.reader import Dataset
from pad_dist.distributed.context import DistributedContext
from pad_dist.errors import UserError
from pad_dist.model.recommender import Recommender
from pad_dist.objectives.auxiliary.base import AuxiliaryLoss
from pad_dist.sparse.build import build_tables
from pad_dist.sparse.hashed import HashedTables
from pad_dist.sparse.new_rows import fill_new_rows
from pad_dist.sparse.row_shards import RowShards
from pad_dist.sparse.spec import Tables, row_std
from pad_dist.sparse.text_rows import TextRows
from pad_dist.sparse.text_start import fill_from_text
from pad_dist.stages.differences import differences
from pad_dist.stages.fingerprint import made_from
from pad_dist.stages.spec import StageSpec
from pad_dist.stages.trained_on import other_version
from pad_dist.stages.warm_start import find_warm_start


@dataclass(frozen=True)
class StageRuntime:
    """What one rank computes a stage with."""

    spec: StageSpec
    context: DistributedContext
    dataset: Dataset
    tables: Tables
    text: TextRows | None
    bins: RowShards
    shares: RowShards | None
    frequencies: RowShards | None
    ids: RowShards | None
    model: Recommender
    auxiliary: AuxiliaryLoss | None

    @property
    def config(self) -> Config:
        """That of the run."""
        return self.spec.config

    def rows(
        self,
        items: Tensor,
        sightings: Tensor | None = None,
        before_change: Callable[[Tensor], None] = lambda rows: None,
    ) -> Rows:
        """Look up items [U] (ascending, unique) once in every table. Collective.

        Args:
            sightings: of a training step (see `Batch.sightings`); hashed tables admit items by it.
            before_change: is told the rows of the tables, ascending, that may change in this step; collective.
        """
        if isinstance(self.tables, HashedTables) and self.ids is not None:
            rows = self.tables.lookup(self.ids.lookup(items).squeeze(-1), sightings, before_change)
        else:
            before_change(items)
            rows = dict(self.tables.lookup(items))
        rows["bin"] = self.bins.lookup(items).squeeze(-1).long()
        if self.shares is not None:
            rows["share"] = self.shares.lookup(items).squeeze(-1)
        if self.frequencies is not None:
            rows["frequency"] = self.frequencies.lookup(items).squeeze(-1)
        if self.text is not None:
            rows["text"] = self.text.lookup(items)
        return rows

    def masked(self, step: int, items: Tensor) -> Rows:
        """Which items [U] the encoder reads as a token in a step, if the auxiliary loss masks any."""
        masked = self.auxiliary.masked(self.config.seed, step, items) if self.auxiliary else None
        return {} if masked is None else {"masked": masked.to(self.context.device)}

    def to_device(self, batch: Batch) -> Batch:
        """The batch on this rank's device, `positions` summed over ranks. Collective."""
        moved = cast(Batch, _moved(batch, self.context.device))
        return replace(moved, positions=self.context.sum(moved.positions.clone()))

    def eval_to_device(self, batch: EvalBatch) -> EvalBatch:
        """The batch on this rank's device."""
        return cast(EvalBatch, _moved(batch, self.context.device))


def build_runtime(spec: StageSpec, context: DistributedContext) -> StageRuntime:
    """Allocate a stage on this rank; its weights are not initialised."""
    config, dataset = spec.config, Dataset.open(spec.config.dataset)
    device, group = context.device, context.peers
    tables = build_tables(spec.table_spec(dataset.items), config.sparse, device, context.world_size)
    ids = None
    if config.sparse.hashed and spec.tables:
        std = config.sparse.init_std
        tables = HashedTables(tables, config.sparse.hashed, seed=config.seed, std=std, group=group, frozen=spec.frozen)
        ids = RowShards(lambda start, stop: dataset.item_ids(start, stop)[:, None], dataset.items + 1, device, group)
    text = _text_rows(config, dataset, context) if spec.needs_text else None
    bins = _item_column(dataset, 1, context)
    frequencies = _item_column(dataset, 0, context) if spec.needs_frequency else None
    shares = _shares(dataset, context) if config.training.loss.corrects_log_q else None
    # Seeded here: building the tables may draw a number of values that depends on the rank.
    torch.manual_seed(config.seed)
    model = spec.build_model(text.dim if text else 0).to(device)
    auxiliary = spec.auxiliary_loss(spec.auxiliary, group) if spec.auxiliary_loss else None
    return StageRuntime(spec, context, dataset, tables, text, bins, shares, frequencies, ids, model, auxiliary)


def initialise(runtime: StageRuntime) -> None:
    """Give a stage its first weights: drawn from the seed or a warm start's, then inherited from earlier stages.

    Raises:
        UserError: what it starts from has no checkpoint, or one of other settings or data.
    """
    config = runtime.config
    if config.warm_start:
        _start_warm(runtime)
    else:
        runtime.tables.initialise(seed=config.seed, std=config.sparse.init_std)
        if runtime.spec.rows_from_text:
            std = row_std(runtime.tables.spec, config.sparse.init_std)
            device, group = runtime.context.device, runtime.context.peers
            fill_from_text(runtime.tables, runtime.dataset.url, config.text, std=std, device=device, group=group)
    dense = runtime.model.state_dict()
    for inherited in runtime.spec.inherits:
        path, source, expert = _checkpoint(inherited.stage), inherited.source, inherited.expert
        rows = [shard for shard in runtime.tables.weights() if shard.name.split(".")[0] == expert]
        load_shards(path, [replace(shard, name=source + shard.name.removeprefix(expert)) for shard in rows])
        # What only one of the two has, such as the projector of an aligned expert, is left out or stays as it is.
        saved = load_dense(path)
        for name, value in dense.items():
            twin = name.replace(f"experts.{expert}.", f"experts.{source}.", 1)
            if name.startswith(f"experts.{expert}.") and twin in saved:
                value.copy_(saved[twin])


def _start_warm(runtime: StageRuntime) -> None:
    """Weights and known rows of the same stage of an earlier run; new rows from items with like texts.

    Hashed tables come whole, with their maps; a new item has no row before it is admitted.
    """
    source = find_warm_start(runtime.spec)
    runtime.model.load_state_dict(load_dense(source.path))
    if runtime.config.sparse.hashed:
        load_shards(source.path, runtime.tables.weights())
        return
    load_first_rows(source.path, runtime.tables.weights(), source.items + 1)
    if runtime.dataset.items > source.items:
        text = runtime.text or _text_rows(runtime.config, runtime.dataset, runtime.context)
        fill_new_rows(runtime.tables, text.lookup, runtime.bins, source.items)


def load_trained(spec: StageSpec, context: DistributedContext) -> StageRuntime:
    """A trained stage, ready to score.

    Raises:
        UserError: it has no checkpoint, or one of other settings or data.
    """
    path = _checkpoint(spec)
    runtime = build_runtime(spec, context)
    load_weights(runtime, path)
    return runtime


def load_weights(runtime: StageRuntime, path: str) -> None:
    """Take the weights of a checkpoint of the same stage. Collective."""
    load_shards(path, runtime.tables.weights())
    runtime.model.load_state_dict(load_dense(path))


def _checkpoint(spec: StageSpec) -> str:
    again = spec.command()
    path = best_checkpoint(spec.checkpoint_directory, again)
    other = differences(checkpoint_meta(path)["made_from"], made_from(spec))
    if other:
        raise UserError(
            other_version(spec.result_url, Dataset.open(spec.config.dataset), again)
            or f"{path} was trained with other settings than this run's ({other}): run `{again}` or use another --out"
        )
    return path


def _text_rows(config: Config, dataset: Dataset, context: DistributedContext) -> TextRows:
    return TextRows(dataset.url, config.text, dataset.items, device=context.device, group=context.peers)


def _item_column(dataset: Dataset, number: int, context: DistributedContext) -> RowShards:
    """One of `Dataset.item_columns`."""
    return RowShards(
        lambda start, stop: dataset.item_columns(start, stop)[number][:, None],
        dataset.items + 1,
        context.device,
        context.peers,
    )


def _shares(dataset: Dataset, context: DistributedContext) -> RowShards:
    """Each item's share of the train interactions."""
    shares = _item_column(dataset, 0, context)
    counts = shares.local.float()
    shares.local = counts / context.sum(counts.sum())
    return shares


def _moved(batch: Any, device: torch.device) -> Any:
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return replace(batch, **{n: v.to(device, non_blocking=True) for n, v in values.items() if isinstance(v, Tensor)})
