"""provenance.json of a run in verl: as of any run, with the versions of verl's environment in the place of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luspo_cli.training.provenance import configuration_fingerprint, provenance, record_provenance
from luspo_cli.training.verl.plan import VerlPlan


def verl_provenance(path: Path, plan: VerlPlan, versions: dict[str, Any], after_step: int) -> None:
    """Write it, or add a session that goes on after a step."""
    found = provenance(plan.config, None)
    found["configuration"] = configuration_fingerprint(plan.config.model_dump(mode="json"))
    found["engine"] = {"name": "verl", **versions, "overrides": plan.command.overrides()}
    found["hardware"] |= {"nodes": plan.config.verl.nodes, "processes": plan.config.verl.gpus, "gpus": []}
    record_provenance(path, found, after_step)
