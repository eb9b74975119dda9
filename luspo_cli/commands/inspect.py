"""`luspo inspect`: one run at a glance in the terminal, and what to try where its numbers look wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from luspo_cli.analysis.outputs import LOG, check_output
from luspo_cli.errors import UsageError

INSPECT_EXAMPLES = [
    "luspo inspect runs/tiny/luspo-seed0",
    "luspo inspect trl-output/trainer_state.json --json",
    "luspo inspect runs/tiny/luspo-seed0 --step 40 --inspect-log logs/step-40.json",
]


def inspect_cli(
    run: Annotated[Path, Argument(help="A run folder, or a log of TRL, verl, ms-swift, OpenRLHF or W&B.")],
    as_json: Annotated[bool, Option("--json", help="Print one JSON object, for programs.")] = False,
    inspect_log: Annotated[
        Path | None,
        Option(metavar="FILE", help="Write the responses of a stored step for the viewer of Inspect (inspect view)."),
    ] = None,
    step: Annotated[int | None, Option(min=1, help="Which stored step --inspect-log takes. [the last]")] = None,
) -> None:
    """Look at one run: main metrics as sparklines, responses of its last stored step, warnings with what to try."""
    if step is not None and inspect_log is None:
        raise UsageError("--step says what --inspect-log writes; give --inspect-log FILE.json too.")
    check_output(inspect_log, LOG, "--inspect-log")

    from rich.console import Console

    from luspo_cli.analysis.history import read_run
    from luspo_cli.analysis.inspect_log import write_inspect_log
    from luspo_cli.analysis.inspection import inspect_run
    from luspo_cli.commands.display.inspection import inspection_json, print_inspection

    history = read_run(run)
    if inspect_log is not None:
        written = write_inspect_log(history, inspect_log, step)
        typer.echo(f"responses of step {written}: {inspect_log}", err=as_json)
        if not as_json:
            return
    found = inspect_run(history)
    if as_json:
        typer.echo(json.dumps(inspection_json(found), allow_nan=False))
    else:
        print_inspection(found, Console(highlight=False))
