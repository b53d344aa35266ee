"""Arrays in safetensors files: cut anew by any reader, of any type, checked as they are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pad_dist.checkpoint import files as checkpoint
from pad_dist.checkpoint import shard_files
from pad_dist.checkpoint.files import checkpoint_meta, load_shards
from pad_dist.distributed.context import DistributedContext
from pad_dist.errors import UserError
from pad_dist.sparse.spec import TableShard
from tests.support import checkpoints


@pytest.mark.parametrize("kind", [torch.int64, torch.float16, torch.uint8, torch.bool])
def test_arrays_of_any_type_and_more_than_one_block_are_cut_anew(
    place: str, context: DistributedContext, monkeypatch: pytest.MonkeyPatch, kind: torch.dtype
) -> None:
    monkeypatch.setattr(shard_files, "BLOCK_BYTES", 1000)
    whole = {"wide": torch.randint(0, 2, (301, 12)).to(kind), "flat": torch.randint(0, 2, (3001,)).to(kind)}
    shards = [
        TableShard("wide", whole["wide"][:, :5], (0, 0), (301, 12)),
        TableShard("wide", whole["wide"][:123, 5:], (0, 5), (301, 12)),
        TableShard("wide", whole["wide"][123:, 5:], (123, 5), (301, 12)),
        TableShard("flat", whole["flat"][:7], (0,), (3001,)),
        TableShard("flat", whole["flat"][7:], (7,), (3001,)),
        TableShard("flat", whole["flat"][3:3], (3,), (3001,)),  # a rank beyond the last row holds nothing
    ]
    checkpoints.save(place, 1, shards, context)
    path = checkpoint.place(place, 1)
    for rows, columns in [((0, 301), (0, 12)), ((100, 200), (3, 9)), ((300, 301), (11, 12)), ((0, 1), (0, 5))]:
        wide, flat = (
            torch.zeros(rows[1] - rows[0], columns[1] - columns[0], dtype=kind),
            torch.zeros(rows[1], dtype=kind),
        )
        load_shards(
            path, [TableShard("wide", wide, (rows[0], columns[0]), (301, 12)), TableShard("flat", flat, (0,), (3001,))]
        )
        assert torch.equal(wide, whole["wide"][slice(*rows), slice(*columns)])
        assert torch.equal(flat, whole["flat"][: rows[1]])


def test_arrays_of_several_types_lie_in_one_file_each_at_a_multiple_of_its_size(
    tmp_path: Path, context: DistributedContext
) -> None:
    kinds = {"bytes": torch.uint8, "half": torch.float16, "keys": torch.int64, "rows": torch.float32}
    arrays = {name: torch.arange(11).to(kind) for name, kind in kinds.items()}
    checkpoints.save(
        str(tmp_path), 1, [TableShard(name, array, (0,), (11,)) for name, array in arrays.items()], context
    )
    path = checkpoint.place(str(tmp_path), 1)
    for saved in checkpoint_meta(path)["shards"]:
        assert saved["begin"] % arrays[saved["name"]].itemsize == 0, saved["name"]
    for name, array in arrays.items():
        loaded = torch.zeros_like(array)
        load_shards(path, [TableShard(name, loaded, (0,), (11,))])
        assert torch.equal(loaded, array)
        assert torch.equal(load_file(f"{path}/tables-00000.safetensors")[f"{name}@0"], array)


def test_an_array_of_which_a_shard_is_missing_is_refused(tmp_path: Path, context: DistributedContext) -> None:
    whole = torch.arange(10)
    checkpoints.save(
        str(tmp_path),
        1,
        [TableShard("keys", whole[:4], (0,), (10,)), TableShard("keys", whole[5:], (5,), (10,))],
        context,
    )
    with pytest.raises(UserError, match="step-000000001 lacks 1 values of keys"):
        load_shards(checkpoint.place(str(tmp_path), 1), [TableShard("keys", torch.zeros(8), (2,), (10,))])


@pytest.mark.parametrize("size", [1, 4095, 4096, 20_000])
def test_a_checksum_sees_each_changed_bit_and_pages_in_one_anothers_place(size: int) -> None:
    content = np.random.default_rng(size).bytes(size)
    expected = shard_files.checksum(content)
    assert shard_files.checksum(memoryview(b"x" + content)[1:]) == expected  # wherever it lies in memory
    for place in {0, size // 2, size - 1}:
        changed = content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
        assert shard_files.checksum(changed) != expected
    if size > 8192:
        assert shard_files.checksum(content[4096:8192] + content[:4096] + content[8192:]) != expected
