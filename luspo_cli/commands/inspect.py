"""`luspo inspect`: one run at a glance in the terminal, and what to try where its numbers look wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

INSPECT_EXAMPLES = ["luspo inspect runs/tiny/luspo-seed0", "luspo inspect trl-output/trainer_state.json --json"]


def inspect_cli(
    run: Annotated[Path, Argument(help="A run folder, or a log of TRL, verl, ms-swift, OpenRLHF or W&B.")],
    as_json: Annotated[bool, Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Look at one run: main metrics as sparklines, responses of its last stored step, warnings with what to try."""
    from rich.console import Console

    from luspo_cli.analysis.history import read_run
    from luspo_cli.analysis.inspection import inspect_run
    from luspo_cli.commands.display.inspection import inspection_json, print_inspection

    found = inspect_run(read_run(run))
    if as_json:
        typer.echo(json.dumps(inspection_json(found), allow_nan=False))
    else:
        print_inspection(found, Console(highlight=False))
