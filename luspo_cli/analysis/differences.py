"""In what the runs differ beside their configuration: the provenance of each session, and how benchmarks were scored.

A run that goes on after an update or with other data keeps the record it began with and adds one a session; its numbers
come from all of them, so a comparison that read the first alone would call unequal things equal. A score of 4 samples at
temperature 1 beside one of 32 at 0 shows the evaluation, not the objective; one after 100 steps beside one after 300 shows
the training. What has to differ (hardware, the model and its weights) is left out; what a result does not record is said
to be unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from luspo_cli.analysis.history import RunHistory
from luspo_cli.analysis.variants import in_which, shortened
from luspo_cli.config.stored import flatten, show

COMPARED = ("luspo", "code", "packages", "data", "functions")
"""Parts of provenance.json that should be equal; hardware and, for a made model, the weights differ by nature."""
_OF_THE_RESULT = {"version": "version", "mode": "mode", "n_problems": "number of problems", "n_samples": "samples"}
_OF_THE_MODEL = ("model", "weights")
_NAMES = {
    "prompts_sha256": "wording of the prompts",
    "samples": "samples asked for",
    "limit": "limit of problems",
    "step": "training step of the weights",
}
_UNKNOWN = "not recorded"
BLIND = "blind control"


def compared_parts(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return those parts of one session's record, None for a part that it lacks; an objective of one's own is no such part."""
    found = {key: record.get(key) for key in COMPARED}
    if isinstance(functions := found["functions"], Mapping):
        others = {path: one for path, one in functions.items() if one.get("key") != "objective.name"}
        found["functions"] = others or None
    return found


def session_warnings(runs: Sequence[RunHistory]) -> list[str]:
    """Return one sentence for each run and each part in which the run's sessions differ."""
    warnings = []
    for run in runs:
        resumed = [entry for entry in run.provenance.get("resumed") or () if isinstance(entry, Mapping)]
        sessions = [
            (record.get("after_step"), flatten({key: record[key] for key in COMPARED if key in record}))
            for record in (run.provenance, *resumed)
        ]
        for key in dict.fromkeys(key for _, leaves in sessions for key in leaves):
            # What a session does not record is no difference: an older version knew less.
            found = [(step, show(leaves[key])) for step, leaves in sessions if key in leaves]
            parts = [(next(same)[0], value) for value, same in groupby(found, key=lambda pair: pair[1])]
            if len(parts) > 1:
                later = "; ".join(f"{shortened(value)} after step {step}" for step, value in parts[1:])
                warnings.append(
                    f"The sessions of {run.name} differ: provenance.{key} is {shortened(parts[0][1])} at first; {later}."
                )
    return warnings


def scoring_warnings(runs: Sequence[RunHistory]) -> list[str]:
    """Return one sentence for each benchmark and each setting in which the runs' results differ."""
    warnings = []
    for benchmark in dict.fromkeys(name for run in runs for name in run.benchmarks):
        settings = {
            run.name: scoring_settings(run.benchmarks[benchmark]) for run in runs if benchmark in run.benchmarks
        }
        for key in dict.fromkeys(key for found in settings.values() for key in found):
            # A run without a blind control has nothing that could be compared with another's.
            having = {name: found for name, found in settings.items() if key != BLIND or BLIND in found}
            said = in_which({name: _shown(found.get(key)) for name, found in having.items()})
            if len(said) > 1:
                warnings.append(f"{benchmark} was not scored alike in all runs: {key} is {'; '.join(said)}.")
    return warnings


def scoring_settings(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a benchmark's responses were drawn and scored, by a title each; a value that is not recorded may be None."""
    sampling = content.get("sampling") or {}
    found = {title: content.get(key) for key, title in _OF_THE_RESULT.items()}
    found |= {_NAMES.get(key, key): value for key, value in sampling.items() if key not in _OF_THE_MODEL}
    return found | ({BLIND: content["blind"].get("shows")} if isinstance(content.get("blind"), Mapping) else {})


def _shown(value: Any) -> str:
    return _UNKNOWN if value is None else show(value)
