"""`luspo train --probe`: what a few responses of the base model say about a run, as lines and as JSON."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from luspo_cli.config.run import TrainRun
from luspo_cli.machine import libraries_stay
from luspo_cli.runs.folder import IfExists
from luspo_cli.training.probed import Probe, findings, step_time

logger = logging.getLogger(__name__)


def probe_run(
    config: TrainRun,
    path: Path,
    if_exists: IfExists,
    *,
    as_json: bool,
    warnings: Sequence[str],
) -> None:
    """Print what a few responses of the base model say about the run; messages go to stderr."""
    from luspo_cli.processes.signals import lasting_stderr
    from luspo_cli.runs.log import StderrHandler, messages_to

    with libraries_stay():
        from luspo_cli.training.probe import run_probe
    with lasting_stderr(), messages_to([StderrHandler()]):
        for sentence in warnings:
            logger.warning(sentence)
        found = run_probe(config, path, if_exists)
    typer.echo(json.dumps(probe_json(found, config), indent=2) if as_json else probe_text(found, config))


def probe_text(probe: Probe, config: TrainRun) -> str:
    """Return the lines that `luspo train --probe` prints."""
    lengths = "  ".join(f"{name} {value:.0f}" for name, value in probe.lengths.items())
    return "\n".join(
        [
            f"probe: {probe.responses} responses of {config.model.path} to {probe.groups} problems of the run's first step",
            f"response tokens  {lengths}  (limit {probe.response_limit})",
            *findings(probe, config),
        ]
    )


def probe_json(probe: Probe, config: TrainRun) -> dict[str, Any]:
    """The numbers, the shares, the time of a step and the sentences."""
    return {
        **asdict(probe),
        "cut_share": probe.cut_share,
        "signal_share": probe.signal / probe.groups,
        "mixed_share": probe.mixed / probe.groups,
        "step_seconds": asdict(step_time(probe, config)),
        "findings": findings(probe, config),
    }
