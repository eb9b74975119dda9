"""`luspo train --engine verl --dry-run`: verl's command, one setting a line, with what is missing above it; touches nothing."""

from __future__ import annotations

import json
from pathlib import Path

from luspo_cli.config.run import TrainRun
from luspo_cli.training.verl.overrides import verl_files
from luspo_cli.training.verl.plan import plan_verl
from luspo_cli.training.verl.preflight import DEFAULT_PYTHON
from luspo_cli.training.verl.script import arguments, script


def verl_plan_text(config: TrainRun, run: Path, ray_address: str, python: Path | None, *, as_json: bool) -> str:
    """The command of the run folder `run` as a script, or everything about it as JSON."""
    plan, shown = plan_verl(config, verl_files(run), run.name, ray_address), str(python or DEFAULT_PYTHON)
    if not as_json:
        return script(config, plan.command, shown, "bash", plan.notes()).rstrip("\n")
    answer = {
        "configuration": config.model_dump(mode="json"),
        "command": arguments(plan.command, shown),
        "remarks": list(plan.command.remarks),
        "missing": list(plan.missing),
    }
    return json.dumps(answer, indent=2)
