"""What `luspo lab` can be asked: objectives side by side, their causes one at a time, or a key over several values."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from luspo_cli.analysis.lab_figures import Bar, LabFigure, Panel, curves_figure, effects_figure
from luspo_cli.config.lab import LabRun, resolve_lab
from luspo_cli.config.sweeps import parse_sweep, value_text
from luspo_cli.experiments.lab.experiment import LabHistory, run_experiment
from luspo_cli.experiments.lab.summary import LabSummary, curve, curve_of, summarise
from luspo_cli.experiments.lab.switches import Effect, attribute, causes_present

logger = logging.getLogger(__name__)

LENGTH_AXIS, KEPT_AXIS = "expected response length (tokens)", "mean kept advantage"


@dataclass(frozen=True, slots=True)
class Study:
    """An answer: the table's rows, the effects of causes where they were asked for, and what to draw."""

    rows: tuple[LabSummary, ...]
    effects: tuple[Effect, ...]
    swept: str
    """The key of a sweep; empty without one."""
    figure: LabFigure


def compare_objectives(objectives: Sequence[str], seeds: int, preset: str, sets: Sequence[str]) -> Study:
    """Each objective once."""
    configs = {name: resolve_lab(name, preset=preset, sets=sets) for name in objectives}
    histories = {name: _timed(name, config, seeds) for name, config in configs.items()}
    rows = tuple(summarise(history, name) for name, history in histories.items())
    return Study(rows, (), "", _curves(histories, seeds))


def switch_causes(objectives: Sequence[str], seeds: int, preset: str, sets: Sequence[str]) -> Study:
    """Each objective, and each once more without one cause."""
    configs = {name: resolve_lab(name, preset=preset, sets=sets) for name in objectives}
    rows, effects = [], []
    for name, config in configs.items():
        base = _timed(name, config, seeds)
        rows.append(summarise(base, name))
        with _told(f"{name}: each cause taken out"):
            effects += attribute(config, base)
    bars = tuple(Bar(found.cause, found.objective, found.effect) for found in effects if found.effect is not None)
    caption = f"what each cause adds to the final length, paired over {seeds} seeds; line: 95 % interval"
    return Study(tuple(rows), tuple(effects), "", effects_figure(bars, causes_present(effects), caption))


def sweep_key(objectives: Sequence[str], seeds: int, preset: str, sets: Sequence[str], sweep: str) -> Study:
    """Each objective with each value of the key in `sweep`, which is KEY=VALUE,VALUE,..."""
    key, values = parse_sweep(sweep, sets)
    # All of them are resolved before the first one runs: a bad value costs no time.
    configs = {
        (name, value_text(value)): resolve_lab(name, preset=preset, sets=sets, swept=(key, value))
        for name in objectives
        for value in values
    }
    rows = [
        summarise(_timed(f"{name} {key}={value}", config, seeds), f"{name} {value}")
        for (name, value), config in configs.items()
    ]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    x = [float(value) for value in values] if numbers else [float(place) for place in range(len(values))]
    panels = []
    for title, measure, log in ((LENGTH_AXIS, "length_final", True), (KEPT_AXIS, "kept_advantage", False)):
        curves = []
        for place, name in enumerate(objectives):
            own = rows[place * len(values) : (place + 1) * len(values)]
            curves.append(curve_of([row.estimates[measure] for row in own], x, name, name))
        panels.append(Panel(title, tuple(curves), log))
    ticks = tuple(zip(x, map(value_text, values), strict=True))
    caption = f"last tenth of the steps (length), all steps (advantage); band: 95 % interval over {seeds} seeds"
    return Study(tuple(rows), (), key, curves_figure(panels, key, caption, ticks))


def _curves(histories: dict[str, LabHistory], seeds: int) -> LabFigure:
    panels = [
        Panel(LENGTH_AXIS, tuple(curve(history.length, name, name) for name, history in histories.items()), True),
        Panel(
            KEPT_AXIS, tuple(curve(history.kept_advantage, name, name) for name, history in histories.items()), False
        ),
    ]
    return curves_figure(panels, "training step", f"mean over {seeds} seeds; band: its 95 % interval")


def _timed(what: str, config: LabRun, seeds: int) -> LabHistory:
    with _told(f"{what}: {seeds} seeds, {config.run.steps} steps"):
        return run_experiment(config, seeds)


@contextmanager
def _told(what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    logger.info(f"{what}, {time.perf_counter() - start:.1f} s")
