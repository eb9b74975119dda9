"""`luspo compare`: the question of this package in one command, what the objective does to what the model writes.

Either runs that exist are compared, or with `--preset` the missing ones are trained first: every objective with every
seed, everything but `objective` and `run.seed` equal. Three seeds are the default since one proves nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from luspo_cli.config.objective_text import DEFAULT_OBJECTIVES, listed_names
from luspo_cli.errors import UsageError

COMPARE_EXAMPLES = [
    "luspo compare --preset tiny --objectives grpo,gspo,luspo --seeds 3",
    "luspo compare --preset tiny --objectives gspo,luspo --seeds 5 --set update.mini_batches=8 --out runs/mb8",
    "luspo compare runs/tiny",
    "luspo compare runs/gspo runs/luspo --figure lengths.svg --json",
    "luspo compare runs/tiny --html report.html",
]
DEFAULT_SEEDS = 3
DEFAULT_OUT = Path("runs")


def compare_cli(
    runs: Annotated[
        list[Path] | None,
        Argument(
            help="Run folders, folders of them, or logs of TRL, verl, ms-swift, OpenRLHF or W&B; or give --preset."
        ),
    ] = None,
    preset: Annotated[str | None, Option(help="Train what is missing of this preset, then compare.")] = None,
    objectives: Annotated[
        str | None, Option(help=f"With --preset: names, comma between. [{DEFAULT_OBJECTIVES}]")
    ] = None,
    seeds: Annotated[int | None, Option(min=1, help=f"With --preset: seeds 0 to N-1. [{DEFAULT_SEEDS}]")] = None,
    sets: Annotated[
        list[str] | None, Option("--set", help="With --preset: section.key=value for all runs; can be repeated.")
    ] = None,
    out: Annotated[Path | None, Option(help="With --preset: runs are OUT/PRESET/OBJECTIVE-seedK. [runs]")] = None,
    processes: Annotated[
        int | None,
        Option(
            min=1, help="With --preset: trainings side by side, which share the cores. [2; 1 with an NVIDIA device]"
        ),
    ] = None,
    figure: Annotated[
        Path | None, Option(help="Write the length figure here. [with --preset: OUT/PRESET/lengths.png]")
    ] = None,
    html: Annotated[
        Path | None,
        Option(help="Write a page with curves, tables, formulas and the responses here; one file, no network."),
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Compare runs: response length beside accuracy, each run, means with intervals, differences seed by seed."""
    if bool(runs) == bool(preset):
        raise UsageError("Give either run folders or --preset, for example: luspo compare --preset tiny.")
    if html is not None:
        from luspo_cli.report.page import check_html

        check_html(html)
    if preset is None:
        given = {"--objectives": objectives, "--seeds": seeds, "--set": sets, "--out": out, "--processes": processes}
        for option, value in given.items():
            if value:
                raise UsageError(f"{option} goes with --preset; run folders are compared as they are.")
        show_comparison(runs or [], figure, html, as_json=as_json)
        return
    names = listed_names(objectives or DEFAULT_OBJECTIVES)
    folder = (out or DEFAULT_OUT) / Path(preset).name.removesuffix(".toml")
    count = seeds or DEFAULT_SEEDS

    from luspo_cli.commands.display.trainings import shown_on_stderr
    from luspo_cli.experiments.sweep import train_runs

    with shown_on_stderr() as display:
        trained = train_runs(names, count, folder, preset=preset, sets=sets or [], processes=processes, display=display)
    show_comparison(trained, figure or folder / "lengths.png", html, as_json=as_json)


def show_comparison(runs: Sequence[Path], figure: Path | None, html: Path | None, *, as_json: bool) -> None:
    """Compare run folders on standard output, and draw the figure and write the page where a path is given."""
    from rich.console import Console

    from luspo_cli.analysis.comparison import compare_runs
    from luspo_cli.analysis.history import read_runs
    from luspo_cli.commands.display.comparison import comparison_json, print_comparison

    histories = read_runs(runs)
    comparison = compare_runs(histories)
    if as_json:
        report: dict[str, Any] = comparison_json(comparison)
        report["figure"] = None if figure is None else str(figure)
        report["html"] = None if html is None else str(html)
        typer.echo(json.dumps(report, allow_nan=False))
    else:
        print_comparison(comparison, Console(highlight=False))
    # The numbers first: a figure that cannot be drawn or written must not cost them.
    if figure is not None:
        from luspo_cli.analysis.length_curves import plot_length

        plot_length(histories, figure)
        if not as_json:
            typer.echo(f"\nfigure: {figure}")
    if html is not None:
        from luspo_cli.commands.display.comparison import render_table
        from luspo_cli.report.page import write_report

        write_report(histories, render_table(comparison), html)
        if not as_json:
            typer.echo(f"report: {html}")
