"""`luspo train --engine verl --dry-run`: verl's command, one setting a line, with what is missing above it; touches nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from luspo_cli.config.run import TrainRun
from luspo_cli.errors import UsageError
from luspo_cli.runs.folder import IfExists, RunFolder
from luspo_cli.training.verl.overrides import verl_files
from luspo_cli.training.verl.plan import plan_verl
from luspo_cli.training.verl.preflight import DEFAULT_PYTHON, find_python
from luspo_cli.training.verl.script import arguments, script

NOT_ASKED = (
    "not asked here: verl's interpreter and the nodes (versions, the plug-in, settings composed by verl);"
    " a start asks first"
)


def verl_plan_text(
    config: TrainRun, run: Path, if_exists: IfExists, ray_address: str, python: Path | None, *, as_json: bool
) -> str:
    """The command of the run folder `run` as a script, or everything about it as JSON."""
    plan, shown = plan_verl(config, verl_files(run), run.name, ray_address), str(python or DEFAULT_PYTHON)
    for check in (
        lambda: find_python(python),
        lambda: RunFolder(run).check(config.model_dump(mode="json"), if_exists),
    ):
        try:
            check()
        except UsageError as error:
            plan = replace(plan, missing=(*plan.missing, str(error)))
    if not as_json:
        return script(config, plan.command, shown, "bash", [*plan.notes(), NOT_ASKED]).rstrip("\n")
    answer = {
        "configuration": config.model_dump(mode="json"),
        "command": arguments(plan.command, shown),
        "remarks": [*plan.command.remarks, NOT_ASKED],
        "missing": list(plan.missing),
    }
    return json.dumps(answer, indent=2)
