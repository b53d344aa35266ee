"""Checkpoints of a stage: what one holds, and whether it is whole."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pad_dist import storage
from pad_dist.errors import UserError
from pad_dist.evaluation.report import print_table
from pad_dist.runtime.entry import user_errors

app = typer.Typer(no_args_is_help=True, help=__doc__)
Place = Annotated[
    str,
    typer.Argument(
        metavar="DIR|URL", help="a checkpoint, such as runs/demo/align/step-000000480, or a stage: its newest"
    ),
]


@app.command()
def show(place: Place) -> None:
    """Where training stood, what wrote it, and the arrays that it holds."""
    from pad_dist.checkpoint.files import arrays, checkpoint_meta

    with user_errors():
        path = _checkpoint(place)
        meta = checkpoint_meta(path)
        progress = meta.get("progress", {})
        best = progress.get("best", {})
        metrics = best.get("metrics", {})
        facts = [
            ("stage", meta.get("stage")),
            ("step", f"{meta['step']:,}"),
            ("next", f"epoch {progress.get('epoch')}, after {progress.get('place')} steps of it"),
            ("best", f"step {meta['best']:,}, epoch {best.get('epoch')}, hr@10 {metrics.get('hr@10')}"),
            ("written by", f"{meta['world_size']} rank(s), {meta.get('sharding')}"),
            ("versions", ", ".join(f"{name} {version}" for name, version in meta["versions"].items())),
            ("format", meta["format"]),
            ("dataset", _dataset(meta.get("dataset"))),
            ("files", f"{len(meta['files'])}, {sum(record['bytes'] for record in meta['files'].values()):,} bytes"),
        ]
        print_table(path, ("", ""), facts)
        rows = arrays(path)
        print_table("arrays", ("", "shape", "type", "shards", "bytes"), ((*row[:-1], f"{row[-1]:,}") for row in rows))


@app.command()
def verify(place: Place) -> None:
    """Read every file and name each one that is missing or damaged; exit status 1 if there is one."""
    from pad_dist.checkpoint.files import checkpoint_meta, damaged

    with user_errors():
        path = _checkpoint(place)
        problems = damaged(path)
        for line in problems:
            print(line)
        if not problems:
            print(f"{path} is whole: {len(checkpoint_meta(path)['files'])} files")
    raise typer.Exit(1 if problems else 0)


def _checkpoint(place: str) -> str:
    from pad_dist.checkpoint.files import complete_steps
    from pad_dist.checkpoint.files import place as place_of

    names = storage.names(place)
    if any(name.endswith((".safetensors", "COMPLETE")) for name in names):
        return place.rstrip("/")
    steps = complete_steps(place)
    if not steps:
        raise UserError(f"{place} is no checkpoint and holds none: name a stage's directory or a step in it")
    return place_of(place, steps[0])


def _dataset(record: dict[str, Any] | None) -> str:
    from pad_dist.stages.trained_on import described

    return described(record) if record else "unknown"
