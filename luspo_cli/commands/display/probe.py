"""What a probe found, as lines and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from luspo_cli.config.run import TrainRun
from luspo_cli.training.probed import Probe, findings, step_time


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
