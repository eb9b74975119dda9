"""`luspo plot-length`: response length over training steps, accuracy beside it, as PNG, SVG or PDF.

Length is the first thing in which objectives separate, and the easiest to misread from one seed: every run is drawn,
and the legend counts them.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from luspo_cli.analysis.outputs import FIGURE, NUMBERS, check_output
from luspo_cli.commands.display.output import Style
from luspo_cli.errors import UsageError

PLOT_LENGTH_EXAMPLES = [
    "luspo plot-length runs/tiny --out lengths.png",
    "luspo plot-length runs/tiny/luspo-seed0 runs/tiny/gspo-seed0 --out lengths.svg --smooth 1",
    "luspo plot-length runs/tiny/*/ --out correct.pdf --split-correct",
    "luspo plot-length runs/tiny --out figure.pdf --style paper --data figure.csv",
    "luspo plot-length runs/mine trl-output/trainer_state.json verl/metrics.jsonl --out peers.png --no-accuracy",
]


def plot_length_cli(
    runs: Annotated[
        list[Path],
        Argument(help="Run folders, folders of them, or logs of TRL, verl, ms-swift, OpenRLHF, W&B or TensorBoard."),
    ],
    out: Annotated[
        Path, Option("--out", "-o", help="The figure: .png, .svg or .pdf. An older one is replaced.")
    ] = Path("lengths.png"),
    smooth: Annotated[
        int | None, Option(help="Steps of the centred moving mean; 1: none. Left out: a twelfth of the steps.")
    ] = None,
    split_correct: Annotated[
        bool, Option("--split-correct", help="Draw correct (solid) and incorrect rollouts (dashed) apart.")
    ] = False,
    metric: Annotated[
        str, Option(help="Another metric of docs/run-folder.md, for example response_length/p90.")
    ] = "response_length/mean",
    linear: Annotated[bool, Option("--linear", help="A linear axis; lengths have a logarithmic one.")] = False,
    accuracy: Annotated[
        bool, Option("--accuracy/--no-accuracy", help="A second panel with accuracy on the training batch.")
    ] = True,
    style: Annotated[
        Style, Option(help="paper: GRPO against GSPO, GSPO against LUSPO; length, reward and held-out avg@k.")
    ] = "screen",
    data: Annotated[Path | None, Option(help="Write the drawn numbers here, as CSV.")] = None,
    as_json: Annotated[
        bool, Option("--json", help="Print one JSON object, {path, caption, notes, clip_ranges}, for programs.")
    ] = False,
) -> None:
    """Draw mean response length over training steps, one colour an objective: each run, their mean and their range."""
    from luspo_cli.analysis.history import read_runs
    from luspo_cli.analysis.length_curves import LENGTH, plot_length
    from luspo_cli.analysis.paper_figure import plot_paper

    check_output(out, FIGURE, "--out")
    check_output(data, NUMBERS, "--data")
    if style == "paper":
        given = {"--split-correct": split_correct, "--metric": metric != LENGTH, "--no-accuracy": not accuracy}
        for option, value in given.items():
            if value:
                raise UsageError(f"{option} does not go with --style paper, whose panels are fixed.")
        figure = plot_paper(read_runs(runs), out, smooth=smooth, data=data)
    else:
        figure = plot_length(
            read_runs(runs),
            out,
            smooth=smooth,
            split_correct=split_correct,
            metric=metric,
            log=False if linear else None,
            with_accuracy=accuracy,
            data=data,
        )
    if as_json:
        typer.echo(json.dumps(asdict(figure) | {"path": str(figure.path)}))
        return
    for note in figure.notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"{figure.path}: {figure.caption}.")
