"""What should be equal in provenance.json: between runs, and between the sessions of one run.

A run that goes on after an update or with other data keeps the record it began with and adds one a session; its numbers
come from all of them, so a comparison that read the first alone would call unequal things equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from luspo_cli.analysis.history import RunHistory
from luspo_cli.analysis.variants import flatten, shortened, show

COMPARED = ("luspo", "code", "packages", "data")
"""Parts of provenance.json that should be equal; hardware and, for a made model, the weights differ by nature."""


def compared_parts(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return those parts of one session's record, None for a part that it lacks."""
    return {key: record.get(key) for key in COMPARED}


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
