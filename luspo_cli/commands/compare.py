"""`luspo compare`: the question of this package in one command, what the objective does to what the model writes.

Either runs that exist are compared, or with `--preset` the missing ones are trained first: every objective with every
seed, everything but `objective` and `run.seed` equal. Three seeds are the default since one proves nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from luspo_cli.analysis.outputs import FIGURE, NUMBERS, PAGE, check_output
from luspo_cli.commands.display.output import By, ComparisonOutput, Style
from luspo_cli.config.objective_text import DEFAULT_OBJECTIVES, listed_names
from luspo_cli.errors import UsageError

COMPARE_EXAMPLES = [
    "luspo compare --preset tiny --objectives grpo,gspo,luspo --seeds 3",
    "luspo compare --preset tiny --objectives gspo,luspo --seeds 5 --set update.mini_batches=8 --out runs/mb8",
    "luspo compare --preset tiny --objectives gspo,luspo --sweep update.learning_rate=1e-4,3e-4,1e-3",
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
            help="Run folders, folders of them, or logs of TRL, verl, ms-swift, OpenRLHF, W&B or TensorBoard; or give --preset."
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
    sweep: Annotated[
        str | None,
        Option(
            help="section.key=VALUE,VALUE,...: compare each objective at its best value, chosen on other seeds."
            " Of run folders: the key alone."
        ),
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
    style: Annotated[Style, Option(help="Of the figure; paper: as for luspo plot-length.")] = "screen",
    data: Annotated[Path | None, Option(help="Write the numbers that the figure draws here, as CSV.")] = None,
    html: Annotated[
        Path | None,
        Option(help="Write a page with curves, tables, formulas and the responses here; one file, no network."),
    ] = None,
    predict: Annotated[
        bool,
        Option("--predict", help="With --html: fit the lab to steps 1 to 3 and draw its prediction over the curves."),
    ] = False,
    by: Annotated[
        By,
        Option(help="Compare runs after equal steps, equal response tokens, or equal time in steps."),
    ] = "steps",
    full: Annotated[bool, Option("--full", help="Show every measure and statistic; --json has them all.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Compare runs: response length beside accuracy, each run, means with intervals, differences seed by seed."""
    output = ComparisonOutput(
        by, full, as_json, figure, html, predict, style, data, (sweep or "").partition("=")[0].strip()
    )
    if bool(runs) == bool(preset):
        raise UsageError("Give either run folders or --preset, for example: luspo compare --preset tiny.")
    if predict and html is None:
        raise UsageError("--predict goes with --html, whose curves it draws over; luspo lab --from RUN prints it.")
    check_output(figure, FIGURE, "--figure")
    check_output(data, NUMBERS, "--data")
    check_output(html, PAGE, "--html")
    if preset is None and figure is None and (data is not None or style != "screen"):
        raise UsageError("--style and --data are of the figure; name it with --figure FILE.")
    if preset is None:
        given = {"--objectives": objectives, "--seeds": seeds, "--set": sets, "--out": out, "--processes": processes}
        for option, value in given.items():
            if value:
                raise UsageError(f"{option} goes with --preset; run folders are compared as they are.")
        if sweep and "=" in sweep:
            raise UsageError(f"--sweep {sweep}: values go with --preset; of run folders give the key alone.")
        show_comparison(runs or [], output)
        return
    names = listed_names(DEFAULT_OBJECTIVES if objectives is None else objectives)
    folder = (out or DEFAULT_OUT) / Path(preset).name.removesuffix(".toml")
    count = seeds or DEFAULT_SEEDS

    settings: list[str] = []
    if sweep is not None:
        from luspo_cli.config.sweeps import swept_settings

        settings = swept_settings(sweep, sets or [])

    from luspo_cli.commands.display.trainings import shown_on_stderr
    from luspo_cli.experiments.sweep import train_runs

    with shown_on_stderr() as display:
        trained = train_runs(
            names, count, folder, preset=preset, sets=sets or [], processes=processes, display=display, sweep=settings
        )
    show_comparison(trained, replace(output, figure=figure or folder / "lengths.png"))


def show_comparison(runs: Sequence[Path], output: ComparisonOutput) -> None:
    """Compare run folders on standard output, and draw the figure and write the page where a path is given."""
    from rich.console import Console

    from luspo_cli.analysis.comparison import compare_runs, compare_tuned
    from luspo_cli.analysis.history import read_runs
    from luspo_cli.analysis.variants import split_into_variants
    from luspo_cli.commands.display.comparison import comparison_json, print_comparison

    histories = read_runs(runs)
    variants = split_into_variants(histories)
    if output.tuned_key:
        comparison, variants = compare_tuned(histories, output.tuned_key, output.by)
    else:
        comparison = compare_runs(histories, output.by)
    if output.as_json:
        report: dict[str, Any] = comparison_json(comparison)
        report["figure"] = None if output.figure is None else str(output.figure)
        report["html"] = None if output.html is None else str(output.html)
        typer.echo(json.dumps(report, allow_nan=False))
    else:
        print_comparison(comparison, Console(highlight=False), full=output.full)
    # The numbers first: a figure that cannot be drawn or written must not cost them.
    if output.figure is not None:
        from luspo_cli.analysis.length_curves import plot_length
        from luspo_cli.analysis.paper_figure import plot_paper

        draw = plot_paper if output.style == "paper" else plot_length
        chosen = [run for variant in variants for run in variant.runs]
        draw(chosen, output.figure, variants=variants, data=output.data)
        if not output.as_json:
            typer.echo(f"\nfigure: {output.figure}")
    if output.html is not None:
        from luspo_cli.commands.display.comparison import render_table
        from luspo_cli.commands.display.predicted import predicted_curves
        from luspo_cli.report.page import write_report
        from luspo_cli.runs.log import StderrHandler, messages_to

        with messages_to([StderrHandler()]):  # a line for each variant: fitting takes seconds, for many runs a minute
            predictions, notes = predicted_curves(histories) if output.predict else ([], [])
        tables = render_table(comparison, full=output.full)
        write_report(histories, tables, output.html, predictions=predictions, notes=notes)
        if not output.as_json:
            typer.echo(f"report: {output.html}")
