"""`luspo lab`: why responses get longer or shorter, in an exact model and in seconds, on the loss that trains models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from luspo_cli.analysis.outputs import FIGURE, check_output
from luspo_cli.config.objective_text import DEFAULT_OBJECTIVES, listed_names
from luspo_cli.errors import UsageError

LAB_EXAMPLES = [
    "luspo lab --objectives grpo,gspo,luspo --seeds 64",
    "luspo lab --objectives gspo,luspo --switch",
    "luspo lab --objectives gspo,luspo --sweep update.mini_batches=1,2,4,8",
    "luspo lab --from runs/tiny/gspo-seed0",
    "luspo lab --set objective.clip_low=3e-4 --set objective.clip_high=4e-4 --objectives gspo,luspo --json",
]


def lab_cli(
    objectives: Annotated[str | None, Option(help=f"Names, comma between. [{DEFAULT_OBJECTIVES}]")] = None,
    seeds: Annotated[
        int, Option(min=2, help="Seeds from run.seed on; a seed's numbers do not depend on the others.")
    ] = 64,
    switch: Annotated[
        bool, Option("--switch", help="Take out one cause at a time and say how much of the drift it makes.")
    ] = False,
    sweep: Annotated[str | None, Option(help="section.key=VALUE,VALUE,...: each objective with each value.")] = None,
    runs: Annotated[
        list[Path] | None,
        Option(
            "--from",
            metavar="RUN",
            help="Start as steps 1 to 3 of this run did, predict the rest, and show it beside what happened; can be repeated.",
        ),
    ] = None,
    preset: Annotated[
        str | None, Option(help="Training preset whose objective, batch and update the model runs under. [tiny]")
    ] = None,
    sets: Annotated[
        list[str] | None, Option("--set", help="section.key=value (docs/length.md); can be repeated.")
    ] = None,
    figure: Annotated[
        Path | None, Option(help="Write the figure here. [runs/lab.png, lab-switch.png, lab-sweep.png or lab-from.png]")
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Show which way objectives move response length in an exact model of a policy, and which cause does it."""
    if switch and sweep is not None:
        raise UsageError("--switch and --sweep ask two questions: give one of them.")
    if runs:
        given = {"--objectives": objectives, "--switch": switch or None, "--sweep": sweep, "--preset": preset}
        for option, value in given.items():
            if value is not None:
                raise UsageError(
                    f"{option} does not go with --from, which takes the recipe of the run; --set changes it."
                )
    names = listed_names(DEFAULT_OBJECTIVES if objectives is None else objectives)
    kind = "lab-from" if runs else "lab-sweep" if sweep is not None else "lab-switch" if switch else "lab"
    out = figure or Path("runs") / f"{kind}.png"

    from rich.console import Console

    from luspo_cli.commands.display.lab import print_study, study_json
    from luspo_cli.commands.display.lab_prediction import predictions_json, print_predictions
    from luspo_cli.config.lab import LAB_PRESET
    from luspo_cli.experiments.lab.prediction import Predictions, predict_runs
    from luspo_cli.experiments.lab.study import Study, compare_objectives, sweep_key, switch_causes
    from luspo_cli.runs.log import StderrHandler, messages_to

    check_output(out, FIGURE, "--figure")
    asked = (names, seeds, LAB_PRESET if preset is None else preset, sets or [])
    with messages_to([StderrHandler()]):
        answer: Study | Predictions
        if runs:
            answer = predict_runs(runs, seeds, sets or [])
        elif sweep is not None:
            answer = sweep_key(*asked, sweep)
        elif switch:
            answer = switch_causes(*asked)
        else:
            answer = compare_objectives(*asked)
    if as_json:
        found = study_json(answer) if isinstance(answer, Study) else predictions_json(answer)
        typer.echo(json.dumps(found | {"figure": str(out)}, allow_nan=False))
    elif isinstance(answer, Study):
        print_study(answer, Console(highlight=False))
    else:
        print_predictions(answer, Console(highlight=False))
    # The numbers first: a figure that cannot be drawn or written must not cost them.
    answer.figure.write(out)
    if not as_json:
        typer.echo(f"\nfigure: {out}")
