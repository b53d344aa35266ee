"""Everything one rank needs to compute with a stage: data, tables, frozen rows, dense module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from pad_dist.config import Config, StageName
from pad_dist.data.batches import Batch, EvalBatch, Rows
from pad_dist.data.dataset import Dataset
from pad_dist.data.hashing import MASKED_ITEM, hash_share
from pad_dist.errors import UserError
from pad_dist.model.pad import Pad
from pad_dist.sparse.hashed import HashedTables
from pad_dist.sparse.new_rows import fill_new_rows
from pad_dist.sparse.row_shards import RowShards
from pad_dist.sparse.tables import Tables, build_tables, row_std
from pad_dist.sparse.text_rows import TextRows
from pad_dist.sparse.text_start import fill_from_text
from pad_dist.stages.differences import differences
from pad_dist.stages.earlier import earlier
from pad_dist.stages.fingerprint import made_from
from pad_dist.stages.parts import (
    checkpoint_dir,
    command,
    frozen_experts,
    inherits,
    main_scorer,
    needs_text,
    parts,
    reads_frequency,
    stage_dir,
    table_spec,
)
from pad_dist.stages.trained_on import other_version
from pad_dist.training.checkpoint import best_checkpoint, checkpoint_meta, load_dense, load_first_rows, load_parts
from pad_dist.training.ranks import Ranks


@dataclass(frozen=True)
class System:
    """One stage on one rank."""

    config: Config
    stage: StageName
    ranks: Ranks
    dataset: Dataset
    tables: Tables
    text: TextRows | None
    bins: RowShards
    shares: RowShards | None
    frequencies: RowShards | None
    ids: RowShards | None
    pad: Pad

    @property
    def main_scorer(self) -> str:
        """The score that selects this stage's checkpoint."""
        return main_scorer(self.config, self.stage)

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
        """Which items [U] are masked in a step (RLMRec-Gen): a hash of (seed, step, item), alike on every rank."""
        if parts(self.config, self.stage).beside != "rlmrec_gen":
            return {}
        share = self.config.rlmrec_gen.mask_share
        found = hash_share(share, self.config.seed, MASKED_ITEM, step, items.numpy())
        return {"masked": torch.from_numpy(found).to(self.ranks.device)}

    def to_device(self, batch: Batch) -> Batch:
        """The batch on this rank's device, `positions` summed over ranks. Collective."""
        moved = cast(Batch, _moved(batch, self.ranks.device))
        return replace(moved, positions=self.ranks.sum(moved.positions.clone()))

    def eval_to_device(self, batch: EvalBatch) -> EvalBatch:
        """The batch on this rank's device."""
        return cast(EvalBatch, _moved(batch, self.ranks.device))


def build_system(config: Config, stage: StageName, ranks: Ranks) -> System:
    """Allocate a stage on this rank; weights are whatever the engines put there."""
    made_of = parts(config, stage)
    dataset = Dataset.open(config.dataset)
    tables, ids = (
        build_tables(table_spec(config, stage, dataset.items), config.sparse, ranks.device, ranks.world_size),
        None,
    )
    if config.sparse.hashed and made_of.tables:
        tables = HashedTables(
            tables,
            config.sparse.hashed,
            seed=config.seed,
            std=config.sparse.init_std,
            group=_group(ranks),
            frozen=frozen_experts(config, stage),
        )
        ids = RowShards(
            lambda start, stop: dataset.item_ids(start, stop)[:, None], dataset.items + 1, ranks.device, _group(ranks)
        )
    text = _text_rows(config, dataset, ranks) if needs_text(config, stage) else None
    bins = _item_column(dataset, 1, ranks)
    frequencies = _item_column(dataset, 0, ranks) if reads_frequency(config, stage) else None
    shares = _shares(dataset, ranks) if config.training.loss.log_q else None
    # Seeded here: building the tables may draw a number of values that depends on the rank.
    torch.manual_seed(config.seed)
    text_dim = text.dim if text else 0
    model = config.stage_model(stage)
    pad = Pad(made_of.experts, model, text_dim, made_of.gate, made_of.log_mix, made_of.head).to(ranks.device)
    return System(config, stage, ranks, dataset, tables, text, bins, shares, frequencies, ids, pad)


def initialise(system: System) -> None:
    """Give a stage its first weights: drawn from the seed or an earlier run's, then inherited from earlier stages.

    Raises:
        UserError: what it starts from has no checkpoint, or one of other settings or data.
    """
    config = system.config
    if config.continue_from:
        _continue(system)
    else:
        system.tables.initialise(seed=config.seed, std=config.sparse.init_std)
        if parts(config, system.stage).text_rows:
            std = row_std(system.tables.spec, config.sparse.init_std)
            device, group = system.ranks.device, _group(system.ranks)
            fill_from_text(system.tables, system.dataset.url, config.text, std=std, device=device, group=group)
    dense = system.pad.state_dict()
    for source, there, here in inherits(config, system.stage):
        path = _checkpoint(config, source)
        rows = [part for part in system.tables.weights() if part.name.split(".")[0] == here]
        load_parts(path, [replace(part, name=there + part.name.removeprefix(here)) for part in rows])
        # What only one of the two has, such as the projector of an aligned expert, is left out or stays as it is.
        found = load_dense(path)
        for name, value in dense.items():
            twin = name.replace(f"experts.{here}.", f"experts.{there}.", 1)
            if name.startswith(f"experts.{here}.") and twin in found:
                value.copy_(found[twin])


def _continue(system: System) -> None:
    """Weights and known rows of the same stage of an earlier run; new rows from items with like texts.

    Hashed tables come whole, with their maps; a new item has no row before it is admitted.
    """
    source = earlier(system.config, system.stage)
    system.pad.load_state_dict(load_dense(source.path))
    if system.config.sparse.hashed:
        load_parts(source.path, system.tables.weights())
        return
    load_first_rows(source.path, system.tables.weights(), source.items + 1)
    items = system.dataset.items
    if items > source.items:
        text = system.text or _text_rows(system.config, system.dataset, system.ranks)
        fill_new_rows(system.tables, text.lookup, system.bins, source.items)


def load_trained(config: Config, stage: StageName, ranks: Ranks) -> System:
    """A trained stage, ready to score.

    Raises:
        UserError: it has no checkpoint, or one of other settings or data.
    """
    path = _checkpoint(config, stage)
    system = build_system(config, stage, ranks)
    load_weights(system, path)
    return system


def load_weights(system: System, path: str) -> None:
    """Take the weights of a checkpoint of the same stage. Collective."""
    load_parts(path, system.tables.weights())
    system.pad.load_state_dict(load_dense(path))


def _checkpoint(config: Config, stage: StageName) -> str:
    again = command("CONFIG", stage)
    path = best_checkpoint(checkpoint_dir(config, stage), again)
    other = differences(checkpoint_meta(path)["made_from"], made_from(config, stage))
    if other:
        raise UserError(
            other_version(f"{stage_dir(config, stage)}/result.json", Dataset.open(config.dataset), again)
            or f"{path} was trained with other settings than this run's ({other}): run `{again}` or use another --out"
        )
    return path


def _text_rows(config: Config, dataset: Dataset, ranks: Ranks) -> TextRows:
    return TextRows(dataset.url, config.text, dataset.items, device=ranks.device, group=_group(ranks))


def _item_column(dataset: Dataset, number: int, ranks: Ranks) -> RowShards:
    """One of `Dataset.item_columns`."""
    return RowShards(
        lambda start, stop: dataset.item_columns(start, stop)[number][:, None],
        dataset.items + 1,
        ranks.device,
        _group(ranks),
    )


def _shares(dataset: Dataset, ranks: Ranks) -> RowShards:
    """Each item's share of the train interactions."""
    shares = _item_column(dataset, 0, ranks)
    counts = shares.local.float()
    shares.local = counts / ranks.sum(counts.sum())
    return shares


def _group(ranks: Ranks) -> dist.ProcessGroup | None:
    return ranks.group if ranks.world_size > 1 else None


def _moved(batch: Any, device: torch.device) -> Any:
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return replace(batch, **{n: v.to(device, non_blocking=True) for n, v in values.items() if isinstance(v, Tensor)})
