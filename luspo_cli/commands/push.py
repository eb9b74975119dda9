"""`luspo push`: a run's weights to a Hugging Face hub, with a model card made from the run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from luspo_cli.errors import UsageError

PUSH_EXAMPLES = [
    "luspo push runs/gsm8k-luspo --to me/qwen2.5-gsm8k-luspo --dry-run",
    "luspo push runs/gsm8k-luspo --to me/qwen2.5-gsm8k-luspo --private",
    "luspo push runs/gsm8k-luspo --to me/qwen2.5-gsm8k-luspo --step 50 --revision step-50",
]


def push_cli(
    run: Annotated[str, Argument(help="A run folder.")],
    to: Annotated[str, Option(help="The repository, OWNER/NAME; it is made where it is not there.")],
    step: Annotated[int | None, Option(help="Which checkpoint. [the newest whole one]")] = None,
    revision: Annotated[
        str | None, Option(help="Branch of the repository; it is made where it is not there. [the main one]")
    ] = None,
    private: Annotated[bool, Option("--private", help="Make a new repository private.")] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="Print what would be sent, and the card; send nothing.")] = False,
    as_json: Annotated[bool, Option("--json", help="Answer as one JSON object.")] = False,
) -> None:
    """Send a run's weights, tokenizer and a model card made from the run to the hub, as one commit.

    The card tells objective, settings, curves, evaluations with intervals, provenance, and what the run does not show.
    Rollouts and paths of this machine are not sent. The token is that of `hf auth login` or HF_TOKEN; HF_ENDPOINT names
    another hub.
    """
    from luspo_cli.evaluation.weights import find_weights
    from luspo_cli.report.push import plan_push, push

    folder = Path(run).expanduser()
    if not folder.is_dir():
        raise UsageError(f"There is no run folder '{run}'; name one, since the card is made from a run.")
    weights = find_weights(run, step, command="push")
    if weights.step is None:
        raise UsageError(f"{run} is no run folder; a card is made from a run.")
    for note in weights.notes:
        print(f"warning: {note}; taking the one before", file=sys.stderr)
    upload = plan_push(folder, Path(weights.path), weights.step, to, revision, private=private)
    url = None if dry_run else push(upload)
    if as_json:
        told = {"repository": to, "revision": revision, "private": private, "step": upload.step, "url": url}
        typer.echo(json.dumps(told | {"files": upload.sizes, "card": upload.card}))
        return
    if dry_run:
        typer.echo(f"would be sent to {to}, {f'branch {revision}' if revision else 'its main branch'}, one commit:\n")
        for name, size in upload.sizes.items():
            typer.echo(f"  {size:>15,} bytes  {name}")
        typer.echo(
            f"  {sum(upload.sizes.values()):>15,} bytes  in {len(upload.files)} files\n\nREADME.md:\n\n{upload.card}"
        )
        return
    typer.echo(f"step {upload.step} is at {url}")
