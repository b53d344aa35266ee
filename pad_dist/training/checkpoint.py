"""Checkpoints of a stage: all that training goes on from, and COMPLETE written last.

A checkpoint holds the dense weights, the optimizer's fp32 weights and moments, the
tables with the state of their fused optimizers, and where training stands. Nothing
in it depends on the world size or the ZeRO stage that wrote it. Everything is
safetensors or JSON; nothing is unpickled. Tables are saved and loaded shard by
shard through torch.distributed.checkpoint.
"""

from __future__ import annotations

import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import Size, Tensor
from torch.distributed.checkpoint import (
    ChunkStorageMetadata,
    DefaultLoadPlanner,
    LoadPlan,
    TensorStorageMetadata,
    WriteItem,
)
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from pad_dist import storage
from pad_dist.errors import UserError
from pad_dist.sparse.tables import Part
from pad_dist.training.ranks import Ranks

_COMPLETE = "COMPLETE"


def save_checkpoint(
    stage_dir: str,
    step: int,
    *,
    dense: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    tables: Mapping[str, Any],
    best: int,
    meta: dict[str, Any],
    ranks: Ranks,
) -> None:
    """Write `<stage_dir>/step-<step>`, then remove all others but that of step `best`. Collective."""
    path = _place(stage_dir, step)
    if ranks.is_first:
        shutil.rmtree(path, ignore_errors=True)
        (path / "tables").mkdir(parents=True)
        for name, values in (("dense", dense), ("optimizer", optimizer)):
            whole = {key: value.contiguous().cpu() for key, value in values.items()}
            save_file(whole, path / f"{name}.safetensors")
    ranks.barrier()
    _quiet_save(tables, path / "tables", ranks)
    ranks.barrier()
    if ranks.is_first:
        storage.write_json(str(path / _COMPLETE), meta | {"step": step, "best": best, "files": _sizes(path)})
        for other in Path(stage_dir).glob("step-*"):
            if other not in (path, _place(stage_dir, best)):
                shutil.rmtree(other)
    ranks.barrier()


def best_checkpoint(stage_dir: str, made_by: str) -> Path:
    """The checkpoint that validation selected.

    Raises:
        UserError: there is none; `made_by` is the command that makes one.
    """
    complete = _complete(stage_dir)
    if not complete:
        raise UserError(f"{stage_dir} holds no complete checkpoint: run `{made_by}` first")
    return _place(stage_dir, checkpoint_meta(complete[0])["best"])


def newest_whole_checkpoint(stage_dir: str, say: Callable[[str], None]) -> Path | None:
    """The newest complete checkpoint whose files are as long as they were, and so is that of its best step.

    `say` is told which ones are passed over.
    """
    for path in _complete(stage_dir):
        best = _place(stage_dir, checkpoint_meta(path)["best"])
        damaged = [name for place in {path, best} for name in _damaged(place)]
        if not damaged:
            return path
        say(f"{path} is passed over, damaged: {', '.join(damaged)}")
    return None


def _complete(stage_dir: str) -> list[Path]:
    """Complete checkpoints, the newest first."""
    return sorted((path.parent for path in Path(stage_dir).glob(f"step-*/{_COMPLETE}")), reverse=True)


def _place(stage_dir: str, step: int) -> Path:
    return Path(stage_dir) / f"step-{step:09d}"


def _sizes(path: Path) -> dict[str, int]:
    files = (file for file in path.rglob("*") if file.is_file() and file.name != _COMPLETE)
    return {str(file.relative_to(path)): file.stat().st_size for file in sorted(files)}


def _damaged(path: Path) -> list[str]:
    if not (path / _COMPLETE).exists():
        return [f"{path}/{_COMPLETE}"]
    there, wanted = _sizes(path), checkpoint_meta(path)["files"]
    return [f"{path}/{name}" for name, size in wanted.items() if there.get(name) != size]


def checkpoint_meta(path: Path) -> dict[str, Any]:
    """What was recorded when the checkpoint was completed."""
    return dict(storage.read_json(str(path / _COMPLETE)))


def load_dense(path: Path) -> dict[str, Tensor]:
    """Dense state of a checkpoint."""
    return load_file(path / "dense.safetensors")


def load_optimizer(path: Path) -> dict[str, Tensor]:
    """The dense optimizer's state of a checkpoint."""
    return load_file(path / "optimizer.safetensors")


def load_tables(path: Path, tables: Mapping[str, Any]) -> None:
    """Fill tables in place from {name in the checkpoint: weights}. Collective."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(dict(tables), storage_reader=HuggingFaceStorageReader(str(path / "tables")))


def load_first_rows(path: Path, parts: Iterable[Part], rows: int) -> None:
    """Fill rows 0..rows-1 of tables in place from the tables of `rows` rows in a checkpoint. Collective.

    Each rank reads what its parts hold of them and leaves their later rows alone.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load({}, storage_reader=HuggingFaceStorageReader(str(path / "tables")), planner=_FirstRows(parts, rows))


class _FirstRows(DefaultLoadPlanner):
    """Asks for the first rows of tables that have grown; by itself a table loads at its own size alone."""

    def __init__(self, parts: Iterable[Part], rows: int) -> None:
        super().__init__()
        self._rows = rows
        starts = [part for part in parts if part.offsets[0] < rows]
        self._parts: dict[tuple[Any, ...], Tensor] = {
            (p.name, *p.offsets): p.tensor[: rows - p.offsets[0]] for p in starts
        }

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        items = []
        for (table, *place), part in self._parts.items():
            saved = self.metadata.state_dict_metadata[table]
            assert isinstance(saved, TensorStorageMetadata)
            if saved.size[0] != self._rows:
                raise ValueError(f"table {table} of the checkpoint has {saved.size[0]} rows, not {self._rows}")
            chunk = ChunkStorageMetadata(Size(place), part.size())
            items += create_read_items_for_chunk_list(table, saved, [chunk])
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        assert index.offset is not None
        return self._parts[(index.fqn, *index.offset)]


def _quiet_save(tables: Mapping[str, Any], path: Path, ranks: Ranks) -> None:
    with warnings.catch_warnings():
        # ShardedTensor is TorchRec's own type; its deprecation is not the user's concern.
        warnings.simplefilter("ignore")
        dcp.save(dict(tables), storage_writer=_Writer(str(path), save_distributed=True))


class _Writer(HuggingFaceStorageWriter):
    """Puts several shards of one table (column-wise) into several files: a file has one tensor of a name."""

    def _split_by_storage_plan(
        self, storage_plan: dict[str, int] | None, items: list[WriteItem]
    ) -> dict[int, list[WriteItem]]:
        files: dict[int, list[WriteItem]] = {}
        seen: Counter[str] = Counter()
        for item in items:
            seen[item.index.fqn] += 1
            files.setdefault(seen[item.index.fqn], []).append(item)
        return files
