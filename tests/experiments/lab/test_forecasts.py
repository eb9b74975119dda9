"""Measures of forecasts, on numbers done by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_run import write_run

from luspo_cli.config.lab import resolve_lab
from luspo_cli.experiments.lab.forecasts import measures, runs_inside
from luspo_cli.experiments.lab.prediction import Prediction, predict_runs


def cell(like: Prediction, start: float, final: float, *real: float) -> Prediction:
    runs = tuple(replace(like.runs[0], start=start, final=own) for own in real)
    return replace(like, no_change=start, final=final, low=final - 2, high=final + 2, runs=runs)


def test_a_forecast_is_measured_over_cells_beside_no_change(tmp_path: Path) -> None:
    like = predict_runs([write_run(tmp_path / "run", resolve_lab("gspo", sets=["run.steps=4"]))], 2).rows[0]
    # Shorter as predicted; longer as predicted; shorter where longer was predicted.
    rows = [cell(like, 20, 10, 11, 13), cell(like, 20, 30, 25), cell(like, 22, 24, 18)]
    found = measures(rows)
    assert found["the lab"].sign == pytest.approx(2 / 3)
    assert found["no change"].sign is None
    assert found["the lab"].rank == pytest.approx(1.0)  # 10, 24, 30 against 12, 18, 25
    assert found["the lab"].error == pytest.approx((2 + 5 + 6) / 3)
    assert found["no change"].error == pytest.approx((8 + 5 + 4) / 3)
    assert found["the lab"].log_error == pytest.approx((math.log(12 / 10) + math.log(30 / 25) + math.log(24 / 18)) / 3)
    # Of 11, 13, 25 and 18 only 11 lies within 2 tokens of what was predicted.
    assert runs_inside(rows) == (1, 4)
