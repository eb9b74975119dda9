"""`luspo merge`: a LoRA run's adapter and its base model become one plain Hugging Face folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from luspo_cli.errors import UsageError

MERGE_EXAMPLES = [
    "luspo merge runs/gsm8k-lora --out models/gsm8k-lora",
    "luspo merge runs/gsm8k-lora --step 20 --out models/gsm8k-lora-20",
    "luspo merge ADAPTER_FOLDER --out models/merged",
]


def merge_cli(
    run_or_adapter: Annotated[
        str, Argument(help="A run folder of a LoRA run, or a peft folder with adapter_config.json.")
    ],
    out: Annotated[Path, Option(help="The folder to make.")],
    step: Annotated[int | None, Option(help="Which checkpoint of a run. [the newest whole one]")] = None,
    as_json: Annotated[bool, Option("--json", help="Answer as one JSON object.")] = False,
) -> None:
    """Fold an adapter into its base model and write float32 weights and tokenizer, for any program that loads models."""
    from luspo_cli.evaluation.weights import find_weights
    from luspo_cli.policy.loading import write_merged

    if out.exists():
        raise UsageError(f"{out} exists; choose another --out.")
    weights = find_weights(run_or_adapter, step, command="merge")
    for note in weights.notes:
        print(f"warning: {note}; taking the one before", file=sys.stderr)
    if weights.base is None:
        raise UsageError(f"{weights.path} holds no adapter: it is a plain model folder already.")
    write_merged(Path(weights.path), out)
    if as_json:
        typer.echo(json.dumps({"out": str(out), "adapter": weights.path, "base": weights.base, "step": weights.step}))
    else:
        print(f"{weights.base} with the adapter of {weights.path} is in {out}", file=sys.stderr)
