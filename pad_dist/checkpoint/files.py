"""What a checkpoint of a stage is: all that training resumes from, and COMPLETE written last.

A checkpoint is a directory `step-<step>` at any fsspec URL:

    dense.safetensors         the dense weights, whole
    optimizer.safetensors     the dense optimizer's fp32 weights and moments, whole
    tables-<rank>.safetensors each rank's shards of the tables and of their optimizers' state (`shard_files`)
    COMPLETE                  JSON: what is in those files, with sizes and checksums, and the progress of training

Nothing in it depends on the world size or the ZeRO stage that wrote it. Everything is
safetensors or JSON; nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from torch import Tensor

from pad_dist import storage
from pad_dist.checkpoint.shard_files import DamagedFile, SavedShard, check_header, checksum, read_blocks, read_shards
from pad_dist.errors import UserError
from pad_dist.sparse.spec import TableShard

FORMAT = 3
"""Of what a checkpoint holds and how."""
_COMPLETE = "COMPLETE"
_LIBRARIES = ("torch", "torchrec", "deepspeed")


def versions() -> dict[str, str]:
    """The installed ones of the libraries whose state a checkpoint holds; the torch backend needs no torchrec."""
    installed = {}
    for name in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def place(directory: str, step: int) -> str:
    """Directory of the checkpoint of a step, inside that of its stage."""
    return storage.join(directory, f"step-{step:09d}")


def clear(path: str) -> None:
    """Make an empty directory."""
    storage.remove(path)
    fs, folder = storage.filesystem(path)
    fs.makedirs(folder, exist_ok=True)


def file_record(path: str, name: str, content: bytes | None = None) -> dict[str, int]:
    """Bytes of a file, and its checksum if it was written whole (that of tables is with their shards)."""
    fs, folder = storage.filesystem(storage.join(path, name))
    return {"bytes": fs.size(folder)} | ({} if content is None else {"checksum": checksum(content)})


def complete(path: str, meta: dict[str, Any], written: Iterable[dict[str, Any]]) -> None:
    """Write COMPLETE: from now on this is a checkpoint."""
    written = list(written)
    files = {name: record for rank in written for name, record in rank["files"].items()}
    shards = [shard for rank in written for shard in rank["shards"]]
    known = {"format": FORMAT, "versions": versions(), "files": files, "shards": shards}
    storage.write_json(storage.join(path, _COMPLETE), meta | known)
    storage.sync(storage.join(path, _COMPLETE))


def update(path: str, meta: dict[str, Any]) -> None:
    """Write COMPLETE anew with other facts about the same files."""
    storage.write_json(storage.join(path, _COMPLETE), checkpoint_meta(path) | meta)
    storage.sync(storage.join(path, _COMPLETE))


def retain(directory: str, newest: int, count: int) -> None:
    """Remove all checkpoints but the `count` newest up to step `newest`, and the best of each."""
    kept = [step for step in complete_steps(directory) if step <= newest][:count]
    best = {checkpoint_meta(place(directory, step))["best"] for step in kept}
    for name in storage.names(directory):
        if name.startswith("step-") and int(name.removeprefix("step-")) not in {*kept, *best}:
            storage.remove(storage.join(directory, name))


def complete_steps(directory: str) -> list[int]:
    """Steps of the complete checkpoints, the newest first."""
    steps = (int(name.removeprefix("step-")) for name in storage.names(directory) if name.startswith("step-"))
    return sorted((s for s in steps if storage.exists(storage.join(place(directory, s), _COMPLETE))), reverse=True)


def best_checkpoint(directory: str, made_by: str) -> str:
    """The checkpoint that validation selected.

    Raises:
        UserError: there is none; `made_by` is the command that makes one.
    """
    steps = complete_steps(directory)
    if not steps:
        raise UserError(f"{directory} holds no complete checkpoint: run `{made_by}` first")
    return place(directory, checkpoint_meta(place(directory, steps[0]))["best"])


def checkpoint_meta(path: str) -> dict[str, Any]:
    """What was recorded when the checkpoint was completed.

    Raises:
        DamagedFile: it is incomplete.
        UserError: it has another format.
    """
    url = storage.join(path, _COMPLETE)
    if not storage.exists(url):
        raise DamagedFile(f"{path} is no complete checkpoint: it has no {_COMPLETE}")
    try:
        meta: dict[str, Any] = storage.read_json(url)
    except UserError as error:
        raise DamagedFile(str(error)) from None
    if meta.get("format") != FORMAT:
        raise UserError(
            f"{path} has the checkpoint format {meta.get('format')}, this pad-dist reads {FORMAT}: use the version "
            "of pad-dist that wrote it, or remove the stage's directory to train it from the beginning"
        )
    return meta


def wrong_sizes(path: str) -> list[str]:
    """Files that are missing or not as long as they were."""
    wrong = []
    for name, record in checkpoint_meta(path)["files"].items():
        fs, file = storage.filesystem(storage.join(path, name))
        if not fs.exists(file) or fs.size(file) != record["bytes"]:
            wrong.append(storage.join(path, name))
    return wrong


def damaged(path: str, share: int = 0, of: int = 1) -> list[str]:
    """Read every file of a checkpoint, or each `of`-th from `share` on; why each damaged one is."""
    meta, problems = checkpoint_meta(path), []
    for name in sorted(meta["files"])[share::of]:
        try:
            if "checksum" in meta["files"][name]:
                _content(path, name, meta)
                continue
            shards = [shard for shard in _shards(meta) if shard.file == name]
            check_header(path, shards)
            for shard in shards:
                for _ in read_blocks(path, shard):
                    pass
        except DamagedFile as error:
            problems.append(str(error))
    return problems


def arrays(path: str) -> list[tuple[str, str, str, int, int]]:
    """(name, shape, type, shards, bytes) of each table and optimizer state that a checkpoint holds."""
    saved = _shards(checkpoint_meta(path))
    by_name = {shard.name: [other for other in saved if other.name == shard.name] for shard in saved}
    return [
        (
            name,
            " x ".join(map(str, shards[0].shape)),
            shards[0].dtype,
            len(shards),
            sum(shard.nbytes for shard in shards),
        )
        for name, shards in sorted(by_name.items())
    ]


def load_dense(path: str) -> dict[str, Tensor]:
    """Dense state of a checkpoint."""
    return _whole(path, "dense.safetensors")


def load_optimizer(path: str) -> dict[str, Tensor]:
    """The dense optimizer's state of a checkpoint."""
    return _whole(path, "optimizer.safetensors")


def load_shards(path: str, shards: Iterable[TableShard]) -> None:
    """Fill shards in place from the arrays of their names in a checkpoint, each rank its own.

    Raises:
        UserError: see `read_shards`.
    """
    saved = _shards(checkpoint_meta(path))
    by_file = {shard.file: [other for other in saved if other.file == shard.file] for shard in saved}
    for ours in by_file.values():
        check_header(path, ours)
    read_shards(path, saved, shards)


def load_first_rows(path: str, shards: Iterable[TableShard], rows: int) -> None:
    """Fill rows 0..rows-1 in place from the arrays of `rows` rows in a checkpoint; later rows stay as they are."""
    load_shards(
        path,
        [
            replace(shard, tensor=shard.tensor[: rows - shard.offsets[0]], shape=(rows, *shard.shape[1:]))
            for shard in shards
            if shard.offsets[0] < rows
        ],
    )


def _shards(meta: dict[str, Any]) -> list[SavedShard]:
    return [SavedShard.from_json(values) for values in meta["shards"]]


def _whole(path: str, name: str) -> dict[str, Tensor]:
    try:
        return from_safetensors(_content(path, name, checkpoint_meta(path)))
    except SafetensorError as error:
        raise DamagedFile(f"{storage.join(path, name)} is no safetensors file: {error}") from None


def _content(path: str, name: str, meta: dict[str, Any]) -> bytes:
    url = storage.join(path, name)
    if not storage.exists(url):
        raise DamagedFile(f"{url} is missing")
    content = storage.read_bytes(url)
    if checksum(content) != meta["files"][name]["checksum"]:
        raise DamagedFile(f"{url} is damaged: its content is not what was saved")
    return content
