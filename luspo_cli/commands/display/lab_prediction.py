"""The lab's predictions of runs as tables for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from luspo_cli.commands.display.comparison import print_whole, titled_table
from luspo_cli.commands.display.format import DASH
from luspo_cli.experiments.lab.prediction import Prediction, Predictions
from luspo_cli.experiments.lab.start_values import FITTED_STEPS
from luspo_cli.metrics.intervals import LEVEL


def print_predictions(found: Predictions, console: Console) -> None:
    """Print the table of predictions, the fitted start values, and what a reader of the numbers must know."""
    lines = [Text(line, style="dim") for line in _statements(found)]
    print_whole(Group(_predictions_table(found), "", _starts_table(found), "", *lines), console)


def predictions_json(found: Predictions) -> dict[str, Any]:
    """Return every row as plain JSON values; `config` is the experiment of the lab that was run."""
    return {
        "level": LEVEL,
        "fitted_steps": FITTED_STEPS,
        "seeds": found.seeds,
        "predictions": [_json(row) for row in found.rows],
    }


def _json(row: Prediction) -> dict[str, Any]:
    curve = row.curve
    return {
        "label": row.label,
        "objective": row.objective,
        "predicted": {"final": row.final, "low": row.low, "high": row.high},
        "real": None if row.real is None else asdict(row.real),
        "no_change": row.no_change,
        "error": row.error,
        "no_change_error": row.no_change_error,
        "same_direction": row.same_direction,
        "runs": [{key: value for key, value in asdict(run).items() if key != "lengths"} for run in row.runs],
        "start": asdict(row.start),
        "config": row.config.model_dump(mode="json"),
        "curve": {"step": curve.x, "mean": curve.mean, "low": curve.low, "high": curve.high},
    }


def _predictions_table(found: Predictions) -> Table:
    table = titled_table("Predicted by the exact model")
    table.add_column("runs", no_wrap=True)
    for title in (
        "\nnumber",
        "length\nsteps 1 to 3",
        "final\npredicted",
        f"{LEVEL:.0%} of\nits seeds",
        "final\nreal",
        "error\nprediction",
        "error\nno change",
        "same\ndirection",
    ):
        table.add_column(title, justify="right", no_wrap=True)
    for row in found.rows:
        real, same = row.real, row.same_direction
        half = "" if real is None or real.half_width is None else f" ± {real.half_width:.1f}"
        table.add_row(
            row.label,
            str(len(row.runs)),
            f"{row.no_change:.1f}",
            f"{row.final:.1f}",
            f"{row.low:.1f} to {row.high:.1f}",
            DASH if real is None else f"{real.mean:.1f}{half}",
            DASH if row.error is None else f"{row.error:+.1f}",
            DASH if row.no_change_error is None else f"{row.no_change_error:+.1f}",
            DASH if same is None else "yes" if same else "no",
        )
    return table


def _starts_table(found: Predictions) -> Table:
    table = titled_table("Fitted")
    table.add_column("runs", no_wrap=True)
    for title in ("accuracy", "spread over\nproblems", "size of an\nupdate", "read in", "coupling\nmeasured", "used"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in found.rows:
        start, config, coupled = row.start, row.config, row.start.coupling
        measured = DASH if coupled is None else f"{coupled.mean:+.2f} ± {coupled.half_width:.2f}"
        table.add_row(
            row.label,
            f"{start.accuracy:.3f}",
            DASH if start.skill_spread is None else f"{start.skill_spread:.2f}",
            f"{config.model.answer_noise:.2f}",
            start.size.source,
            measured,
            f"{config.model.coupling:g}",
        )
    return table


def _statements(found: Predictions) -> Iterator[str]:
    yield (
        f"Lengths in tokens. The fit reads steps 1 to {FITTED_STEPS} and nothing later; final: mean over the last tenth of the"
        f" planned steps. {LEVEL:.0%} of its seeds: where so many of {found.seeds} runs of the model end. No change: the length"
        f" of steps 1 to {FITTED_STEPS} as forecast. Error: forecast less real."
    )
    yield (
        "Size of an update: standard deviation, in logits, by which the first optimizer step moves the wrong answers of prompts"
        " that it did not train on."
    )
    yield "Coupling: move of the stopping logit for each unit of the right answer's, used where its interval leaves out 0."
    for note in dict.fromkeys(note for row in found.rows for note in row.start.notes):
        yield f"Not fitted, {', '.join(row.label for row in found.rows if note in row.start.notes)}: {note}."
    for row in found.rows:
        if row.real is None:
            steps = max(run.lengths[-1][0] for run in row.runs)
            yield f"{row.label} has no real final length yet: step {steps:.0f} of {row.config.run.steps}."
    yield "A model of the causes, not of a network: docs/length.md says how often its predictions held."
