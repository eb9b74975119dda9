"""`luspo fork`: what a few steps of each objective do from one checkpoint, replicate by replicate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from luspo_cli.config.objective_text import DEFAULT_OBJECTIVES, listed_names

FORK_EXAMPLES = [
    "luspo fork runs/tiny/luspo-seed0 --step 40 --objectives gspo,luspo --steps 5 --replicates 8 --preset tiny",
    "luspo fork runs/tiny/luspo-seed0 --step 40 --objectives gspo,luspo --variant both-sided"
    " --variant low-only:objective.clip_high=1e6 --variant high-only:objective.clip_low=1.0",
    "luspo fork runs/tiny/luspo-seed0 --step 40 --objectives luspo --variant rate-3e-4"
    " --variant rate-1e-4:update.learning_rate=1e-4 --json",
]


def fork_cli(
    run: Annotated[Path, Argument(help="Run folder with the checkpoint.")],
    step: Annotated[int, Option(min=1, help="Training step of the checkpoint.")],
    objectives: Annotated[str, Option(help="Names, comma between.")] = DEFAULT_OBJECTIVES,
    variants: Annotated[
        list[str] | None,
        Option(
            "--variant",
            help="LABEL or LABEL:section.key=value,section.key=value: every objective under these settings; can be repeated.",
        ),
    ] = None,
    steps: Annotated[int, Option(min=1, help="Training steps of each fork.")] = 5,
    replicates: Annotated[int, Option(min=1, help="Replicates: other problems and draws each.")] = 8,
    preset: Annotated[
        str | None, Option(help="Gives objectives other than the run's their clip ranges, as training with it would.")
    ] = None,
    sets: Annotated[list[str] | None, Option("--set", help="section.key=value for all forks; can be repeated.")] = None,
    out: Annotated[Path | None, Option(help="Forks are OUT/OBJECTIVE-LABEL-replicateR. [RUN-fork-stepK]")] = None,
    processes: Annotated[
        int | None, Option(min=1, help="Trainings side by side, which share the cores. [2; 1 with an NVIDIA device]")
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Go on from one checkpoint under several objectives: what each does in a few steps, paired over replicates."""
    from rich.console import Console

    from luspo_cli.analysis.forks import compare_forks
    from luspo_cli.commands.display.forks import forks_json, print_forks
    from luspo_cli.commands.display.trainings import shown_on_stderr
    from luspo_cli.config.forking import parse_variants
    from luspo_cli.experiments.forks import train_forks

    asked = parse_variants(listed_names(objectives), variants or [])
    folder = out or run.with_name(f"{run.name}-fork-step{step}")
    with shown_on_stderr() as display:
        trained = train_forks(
            run,
            step,
            asked,
            replicates,
            folder,
            steps=steps,
            sets=sets or [],
            preset=preset,
            processes=processes,
            display=display,
        )
    comparison = compare_forks(asked, trained)
    if as_json:
        typer.echo(json.dumps(forks_json(comparison), allow_nan=False))
    else:
        print_forks(comparison, Console(highlight=False))
