"""What stays on a rank from the start of a stage to its end."""

from __future__ import annotations

import torch

from pad_dist.capacity.lines import Line
from pad_dist.capacity.sizes import DataSize
from pad_dist.checkpoint.shard_files import BLOCK_BYTES
from pad_dist.config import Config, HashedConfig
from pad_dist.dataset.reader import BLOCK_ROWS
from pad_dist.runtime.devices import Device
from pad_dist.sparse.id_map import map_bytes
from pad_dist.sparse.placement import DEVICE_SHARE, STATES, Block, block_bytes
from pad_dist.sparse.row_shards import row_range
from pad_dist.stages.spec import StageSpec

PROCESS_BYTES = 475 << 20
"""Resident memory of a rank that holds no data. Measured on two CPU ranks with 100 items: 457 MiB when the stage is
built (interpreter, torch, TorchRec, DeepSpeed, pyarrow, a gloo group), and about 18 MiB that buffers of past phases
leave behind. What a CUDA driver adds on the host was not measured."""
_BIN_BYTES, _FREQUENCY_BYTES = 1, 4


def resident(spec: StageSpec, data: DataSize, device: Device, world_size: int, blocks: list[Block]) -> list[Line]:
    """Lines of the rank that `blocks` are on."""
    config = spec.config
    start, stop = row_range(data.items + 1, 0, world_size)
    rows = stop - start
    on_gpu = device.kind == "cuda"
    averaged = [block for block in blocks if block.table in spec.ema_tables]
    lines = [line for block in blocks for line in _table(block, config)]
    lines += [Line(f"table {b.table}, EMA", block_bytes(b, config.sparse)[0], on_host=on_gpu) for b in averaged]
    tables = len(spec.tables)
    if config.sparse.hashed and tables:
        lines += _hashed(config.sparse.hashed, tables, rows, world_size, on_gpu)
    if spec.needs_text:
        lines.append(Line("text vectors, float16", rows * data.text_dim * 2))
    if spec.needs_frequency:
        lines.append(Line("frequencies to look up", rows * _FREQUENCY_BYTES))
    lines += [
        Line("frequency bins", rows * _BIN_BYTES),
        Line("frequencies and bins as read" if on_gpu else "frequencies", rows * _item_bytes(on_gpu), on_host=on_gpu),
        *dense_lines(spec, data, world_size),
        Line("sequences read ahead", _sequences(data), on_host=on_gpu),
        *_saving(config, blocks, averaged, on_gpu),
        Line("process", PROCESS_BYTES, on_host=on_gpu),
    ]
    return lines


def _hashed(settings: HashedConfig, tables: int, rows: int, world_size: int, on_gpu: bool) -> list[Line]:
    """Maps are on the host and are copied for a save."""
    maps = tables * -(-map_bytes(settings) // world_size)
    return [
        Line("ids of items", rows * 8),
        Line("maps from ids to rows", maps, on_host=on_gpu),
        Line("save: copy of the maps", maps, on_host=on_gpu),
    ]


def _item_bytes(on_gpu: bool) -> int:
    """On a CPU the bins that are read are those that are looked up."""
    return _FREQUENCY_BYTES + (_BIN_BYTES if on_gpu else 0)


def _saving(config: Config, blocks: list[Block], averaged: list[Block], on_gpu: bool) -> list[Line]:
    """A save runs beside steps and validation: one block of a file, and a flag per row of each array.

    Old values of the rows that steps change meanwhile come on top, for as long as they are not written.
    """
    arrays = 1 + STATES[config.sparse.optimizer]
    lines = [
        Line("save: block of a file", BLOCK_BYTES, on_host=on_gpu),
        Line("save: marks of rows", arrays * sum(block.rows for block in blocks)),
    ]
    if averaged and config.sparse.hashed:  # else no step changes them
        lines.append(Line("save: marks of EMA rows", sum(block.rows for block in averaged), on_host=on_gpu))
    if config.sparse.optimizer == "adamw":
        copied = sum(sum(block_bytes(block, config.sparse)) for block in blocks)
        lines.append(Line("save: copy, as each step changes every row", copied))
    return lines


def _table(block: Block, config: Config) -> list[Line]:
    weights, state = block_bytes(block, config.sparse)
    share = DEVICE_SHARE[block.kernel]
    name = f"{config.sparse.optimizer} state"
    lines = [Line(f"table {block.table}", int(weights * share)), Line(f"table {block.table}, {name}", state, share < 1)]
    if share < 1:
        lines.append(Line(f"table {block.table}, all rows ({block.kernel})", weights, on_host=True))
    return lines


def dense_parameters(spec: StageSpec, text_dim: int) -> tuple[int, int]:
    """Parameters of the stage's dense model, and how many of them are trained."""
    with torch.device("meta"):
        model = spec.build_model(text_dim)
    parameters = {name: p.numel() for name, p in model.named_parameters()}
    frozen = sum(n for name, n in parameters.items() if name.startswith(spec.frozen_prefixes))
    return sum(parameters.values()), sum(parameters.values()) - frozen


def dense_lines(spec: StageSpec, data: DataSize, world_size: int) -> list[Line]:
    """Weights, gradients and AdamW's state of the dense part under the config's ZeRO stage and precision.

    ZeRO cuts the optimizer's state (1 and higher), gradients (2 and higher) and weights (3) over the ranks. It keeps
    its own fp32 weights beside the module's; without ZeRO only bf16 does. A validation scores with a copy of the
    module in fp32, made once.
    """
    all_of_them, trained = dense_parameters(spec, data.text_dim)
    zero, width = spec.config.training.zero_stage, 2 if spec.config.training.precision == "bf16" else 4
    own_weights = 4 * trained if zero or width == 2 else 0
    cut = {level: world_size if zero >= level else 1 for level in (1, 2, 3)}
    return [
        Line("dense weights", -(-width * all_of_them // cut[3])),
        Line("dense gradients", -(-width * trained // cut[2])),
        Line("dense AdamW: moments, fp32 weights", -(-(8 * trained + own_weights) // cut[1])),
        Line("dense weights to score with", 4 * all_of_them),
    ]


def _sequences(data: DataSize) -> int:
    """Two blocks of users: their items, and where each history begins and is split."""
    users = min(data.users, 2 * BLOCK_ROWS)
    return users * 8 * (4 + -(-data.interactions // max(data.users, 1)))
