"""What a run began with against what is there now: a resumed run must not go on with other data, weights or settings unnoticed.

provenance.json holds the fingerprints of both. A difference is refused, unless `--allow-changed` says otherwise; then it is
recorded there, and what was accepted once is not asked about again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from luspo_cli.errors import UsageError

SHOWN_DIGITS = 12
"""Of a fingerprint in a message; provenance.json has all of them."""


@dataclass(frozen=True, slots=True)
class Change:
    """One input that is not what it was; None stands for a file that is or was not there."""

    what: str
    was: str | None
    now: str | None
    fingerprint: str = "sha256"
    """What `was` and `now` are: sha256 of a file, or a hub id's commit."""

    def __str__(self) -> str:
        return f"{self.what} ({self.fingerprint} {_short(self.was)} when the run began, {_short(self.now)} now)"


def configuration_fingerprint(configuration: Mapping[str, Any]) -> str:
    """sha256 of a configuration's content; layout and order of keys do not matter."""
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()


def changed_inputs(stored: Path, found: Mapping[str, Any]) -> list[Change]:
    """What differs between the last accepted record in provenance.json and `found`, the same record made now.

    Fingerprints that either side lacks (a run of an older version) are not compared. Raises UsageError where the
    file cannot be read.
    """
    if not stored.is_file():
        return []
    began = read_provenance(stored)
    last = (began.get("resumed") or [began])[-1]
    changes = [
        Change(f"{place}, the data of data.{name},", had["sha256"], now["sha256"])
        for name, now in _mapping(found, "data").items()
        if (had := _mapping(last, "data").get(name)) and had.get("sha256") != now["sha256"]
        for place in [now["path"]]
    ]
    had_model, model = _mapping(last, "model"), _mapping(found, "model")
    had_weights, weights = had_model.get("weights"), model.get("weights")
    if had_weights and weights:
        changes += [
            Change(f"{name} of the starting model {model.get('path')}", had_weights.get(name), weights.get(name))
            for name in sorted({*had_weights, *weights})
            if had_weights.get(name) != weights.get(name)
        ]
    had_commit, commit = had_model.get("commit"), model.get("commit")
    if had_commit and commit and had_commit != commit:
        changes.append(Change(f"the starting model {model.get('path')} of the hub", had_commit, commit, "commit"))
    had_configuration = last.get("configuration")
    if had_configuration and had_configuration != found["configuration"]:
        changes.append(Change(str(stored.with_name("config.json")), had_configuration, found["configuration"]))
    return changes


def refuse_changed(changes: list[Change]) -> None:
    """UsageError that names the first change; nothing where there is none."""
    if changes:
        more = f", and {len(changes) - 1} more" if len(changes) > 1 else ""
        raise UsageError(
            f"changed since the run began: {changes[0]}{more}; put back what was there, start a new run, or go on all the"
            " same with --allow-changed, which provenance.json records"
        )


def as_records(changes: list[Change]) -> list[dict[str, Any]]:
    """The changes as provenance.json keeps them."""
    return [asdict(change) for change in changes]


def read_provenance(path: Path) -> dict[str, Any]:
    """The content of a provenance.json; UsageError where it is not one."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise UsageError(
            f"{path} is not readable JSON, so nobody can tell what the run began with; restore it, or delete it to go on"
            " without that check"
        )
    return content


def _mapping(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = record.get(key)
    return value if isinstance(value, Mapping) else {}


def _short(fingerprint: str | None) -> str:
    return "nothing" if fingerprint is None else f"{fingerprint[:SHOWN_DIGITS]}…"
