"""The pad-dist command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from pad_dist.cli import checkpoint as checkpoint_cli
from pad_dist.cli import compare as compare_cli
from pad_dist.cli import config as config_cli
from pad_dist.cli import data as data_cli
from pad_dist.cli.config import ConfigPath, Out, Overrides
from pad_dist.config.load import load_config
from pad_dist.runtime.doctor import diagnose, print_checks
from pad_dist.runtime.entry import end_on_signals, user_errors
from pad_dist.runtime.threads import limit_threads

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
app.add_typer(config_cli.app, name="config")
app.add_typer(data_cli.app, name="data")
app.add_typer(checkpoint_cli.app, name="checkpoint")
app.command()(compare_cli.compare)
app.command()(compare_cli.tune)
DEVICES = "cpu (this machine), h100, h200, a100-40, a100-80, l4, v100-16, v100-32, or GiB of a GPU"


@app.command()
def run(
    config: ConfigPath,
    out: Out = None,
    overrides: Overrides = None,
    until: Annotated[str, typer.Option(help="last step to take: data (ETL and texts), a stage, or evaluate")] = "",
    reuse: Annotated[
        str,
        typer.Option(
            help="directory of other runs: copy stages that they have trained with the same settings and data"
        ),
    ] = "",
) -> None:
    """Build the dataset, embed texts, train the stages of the method and evaluate them; skips what is done."""
    # torch and the engines load only for the commands that compute.
    from pad_dist.evaluation.report import bin_table, console, report_table
    from pad_dist.pipeline.run import run as run_pipeline

    screen = console()
    end_on_signals()
    with user_errors():
        settings = load_config(config, overrides or [], out)
        report = run_pipeline(
            settings,
            config,
            overrides or [],
            lambda text: screen.print(f"[bold]{text}[/bold]"),
            until=until,
            reuse=reuse,
        )
    if report is None:
        return
    screen.print(report_table(report))
    screen.print(bin_table(report))
    screen.print(f"report: {settings.out}/report.json")


@app.command()
def plan(
    config: ConfigPath,
    overrides: Overrides = None,
    world_size: Annotated[int | None, typer.Option(min=1, help="ranks; default: training.world_size")] = None,
    device: Annotated[str, typer.Option(help=f"of a rank: {DEVICES}")] = "cpu",
    items: Annotated[int | None, typer.Option(min=1, help="items of a catalogue that does not exist yet")] = None,
    text_dim: Annotated[int | None, typer.Option(min=1, help="width of the vectors of an unknown text model")] = None,
    ranks_per_machine: Annotated[
        int | None, typer.Option(min=1, help="that share a CPU's memory; default: all")
    ] = None,
) -> None:
    """What each stage needs on a rank, line by line, and the smallest number of ranks; allocates nothing."""
    from pad_dist.capacity.report import print_plan

    with user_errors():
        print_plan(load_config(config, overrides or []), world_size, device, items, text_dim, ranks_per_machine)


@app.command()
def doctor(
    path: Annotated[str, typer.Option(help="directory that runs write to")] = ".",
    world_size: Annotated[int, typer.Option(help="local ranks that a run will start")] = 2,
) -> None:
    """Check Java, package versions, the fbgemm trap and free disk, and say the fix."""
    raise typer.Exit(print_checks(diagnose(path, world_size)))


def main() -> None:
    """Entry point of the pad-dist command."""
    limit_threads()
    # A checkout's spark_jobs and launchers can be imported from any working directory.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    app()
