"""Whether the runs' benchmark results may be compared: same version, mode, problems, samples, sampling and training step.

A score of 4 samples at temperature 1 beside one of 32 at 0 shows the evaluation, not the objective; one after 100 steps
beside one after 300 shows the training. What has to differ (the model and its weights) is left out; what a result does
not record is said to be unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luspo_cli.analysis.history import RunHistory
from luspo_cli.analysis.variants import shortened, show

_OF_THE_RESULT = {"version": "version", "mode": "mode", "n_problems": "number of problems", "n_samples": "samples"}
_OF_THE_MODEL = ("model", "weights")
_NAMES = {
    "prompts_sha256": "wording of the prompts",
    "samples": "samples asked for",
    "limit": "limit of problems",
    "step": "training step of the weights",
}
_UNKNOWN = "not recorded"


def scoring_warnings(runs: Sequence[RunHistory]) -> list[str]:
    """Return one sentence for each benchmark and each setting in which the runs' results differ."""
    warnings = []
    for benchmark in dict.fromkeys(name for run in runs for name in run.benchmarks):
        settings = {run.name: _settings(run.benchmarks[benchmark]) for run in runs if benchmark in run.benchmarks}
        for key in dict.fromkeys(key for found in settings.values() for key in found):
            by_value: dict[str, list[str]] = {}
            for name, found in settings.items():
                by_value.setdefault(_shown(found.get(key)), []).append(name)
            if len(by_value) > 1:
                said = "; ".join(f"{value} in {', '.join(names)}" for value, names in by_value.items())
                warnings.append(f"{benchmark} was not scored alike in all runs: {key} is {said}.")
    return warnings


def _settings(content: Mapping[str, Any]) -> dict[str, Any]:
    sampling = content.get("sampling") or {}
    found = {title: content.get(key) for key, title in _OF_THE_RESULT.items()}
    return found | {_NAMES.get(key, key): value for key, value in sampling.items() if key not in _OF_THE_MODEL}


def _shown(value: Any) -> str:
    return _UNKNOWN if value is None else shortened(show(value))
