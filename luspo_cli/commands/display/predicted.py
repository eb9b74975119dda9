"""What the lab predicts of compared runs, as curves and sentences for their report."""

from __future__ import annotations

from collections.abc import Sequence

from luspo_cli.analysis.comparison import LENGTH
from luspo_cli.analysis.history import RunHistory
from luspo_cli.analysis.variants import split_into_variants
from luspo_cli.errors import UsageError
from luspo_cli.report.curves import Prediction


def predicted_curves(runs: Sequence[RunHistory]) -> tuple[list[Prediction], list[str]]:
    """The lab's prediction of each variant that it can be fitted to, and sentences: what is drawn, and what is not and why."""
    from luspo_cli.experiments.lab.prediction import (
        predict,
    )  # with torch, which a page without predictions does not need
    from luspo_cli.experiments.lab.start_values import FITTED_STEPS

    found: list[Prediction] = []
    notes: list[str] = []
    for variant in split_into_variants(runs):
        try:
            (row,) = predict(variant.runs).rows
        except UsageError as refused:
            notes.append(f"No prediction for {variant.label}: {refused}")
            continue
        curve = row.curve
        found.append(Prediction(variant.label, "predicted", LENGTH, curve.x, curve.mean, curve.low, curve.high))
        notes += [f"Not fitted, {variant.label}: {note}." for note in row.start.notes]
    if found:
        drawn = (
            f"Long dashes: what the exact model of docs/length.md, fitted to steps 1 to {FITTED_STEPS}, predicts of the mean"
            " response length; dots: where 95 % of its seeds lie. It is a model of causes, not of the network."
        )
        notes.insert(0, drawn)
    return found, notes
