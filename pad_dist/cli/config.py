"""The keys of a run config: what there is to set, and what a config resolves to."""

from __future__ import annotations

from typing import Annotated

import typer

from pad_dist.config import origins, reference
from pad_dist.errors import UserError
from pad_dist.evaluation.report import print_table
from pad_dist.runtime.entry import user_errors

app = typer.Typer(no_args_is_help=True, help=__doc__)
ConfigPath = Annotated[str, typer.Option("--config", help="run YAML, such as configs/demo.yaml")]
Out = Annotated[str | None, typer.Option("--out", help="directory of the run; default: the config's")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[section.key=value]...", help="changes to the config")]


@app.command()
def keys(
    section: Annotated[
        str, typer.Argument(metavar="[SECTION]", help="such as training or model.backbone; default: all")
    ] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="write docs/config.md to the standard output")] = False,
) -> None:
    """Every key with its type or choices, default and description."""
    with user_errors():
        if markdown:
            if section:
                raise UserError(f"--markdown writes the whole reference: leave {section} out")
            print(reference.markdown(), end="")
            return
        for group in reference.select(section):
            title = f"{group.name}: {group.description}" if group.name else group.description
            print_table(title, *reference.table_of(group))


@app.command()
def show(
    config: ConfigPath,
    out: Out = None,
    overrides: Overrides = None,
    changed: Annotated[bool, typer.Option("--changed", help="leave out the defaults")] = False,
) -> None:
    """Every resolved value and where it comes from: file, override, --out, method or default."""
    with user_errors():
        resolved = origins.resolve(config, overrides or [], out)
        rows = [
            (one.key, reference.as_yaml(one.value), one.origin)
            for one in resolved
            if not changed or one.origin != origins.DEFAULT
        ]
        print_table("", ("key", "value", "origin"), rows)
