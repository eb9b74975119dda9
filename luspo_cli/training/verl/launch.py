"""`luspo train --engine verl`: check, write the problems, start verl, watch it into the run folder, merge its checkpoints.

verl runs in its own interpreter and in processes that it starts itself. It ends with this process, whatever ends that
(`processes.contained`). A Ctrl-C ends it at once: verl writes no checkpoint then, and a resumed run goes on from its last one.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luspo_cli.config.run import TrainRun
from luspo_cli.errors import RunError, UsageError
from luspo_cli.files import replace_file
from luspo_cli.processes.supervise import Supervisor
from luspo_cli.rewards.rubric import Rubric
from luspo_cli.runs.folder import IfExists, Outcome, RunFolder
from luspo_cli.runs.tracking import Tracking
from luspo_cli.training.verl.checkpoints import latest_step, merge_checkpoints
from luspo_cli.training.verl.dumped import DumpedRollouts
from luspo_cli.training.verl.overrides import REWARD_KWARGS, verl_files
from luspo_cli.training.verl.plan import VerlPlan, first_missing, plan_verl
from luspo_cli.training.verl.preflight import ask_nodes, ask_verl, enough_nodes, find_python
from luspo_cli.training.verl.provenance import verl_provenance
from luspo_cli.training.verl.script import arguments, script
from luspo_cli.training.verl.translation import Before, Translator, sources_of
from luspo_cli.training.verl.watch import GrowingFile, Watch, bare, last_error

logger = logging.getLogger(__name__)
POLL_S = 0.5
PATIENCE_S = 30.0
"""For verl and all that it started, between the request to stop and the end by force."""
HYDRA_FULL_ERROR = "HYDRA_FULL_ERROR"


@dataclass(frozen=True, slots=True)
class VerlPlace:
    """Where verl is: its interpreter, and the Ray cluster that it joins."""

    python: Path | None = None
    """None: that of `make peers`."""
    ray_address: str = ""
    """Empty: a Ray of its own on this machine."""


def run_verl(
    config: TrainRun,
    path: Path,
    if_exists: IfExists,
    on_step: Callable[[dict[str, Any]], None],
    place: VerlPlace,
    on_begin: Callable[[], None] = lambda: None,
) -> Outcome:
    """Train as configured in run folder `path`; UsageError or RunError with one sentence.

    `on_step` is called with each step's record, `on_begin` when the folder is this run's. Until verl's own environment has been
    asked, the run folder is as it was.
    """
    wanted, files = config.model_dump(mode="json"), verl_files(path)
    goes_on = RunFolder(path).check(wanted, if_exists) and if_exists == "resume"
    after_step = latest_step(files) if goes_on else 0
    plan = plan_verl(config, files, path.name, place.ray_address, after_step)
    first_missing(plan)
    python = find_python(place.python)
    versions = ask_verl(python, config, plan.command) if after_step < config.run.steps else {}
    if place.ray_address and versions:
        versions["nodes"] = ask_nodes(python, place.ray_address)
        enough_nodes(config, versions["nodes"])
    with Rubric(config.reward, config.rollout.max_response_tokens) as rubric, RunFolder(path) as folder:
        if bad := rubric.check_golds([*plan.problems, *plan.held_out]):
            raise UsageError(
                f"{len(bad)} gold answers cannot be read (first: problem '{bad[0]}'); run the data through luspo prepare-data"
            )
        if folder.open(wanted, if_exists):
            folder.cut_back(after_step)
        on_begin()
        stopped_by = None
        if after_step < config.run.steps:
            _begin(plan, folder, python, versions, after_step)
            stopped_by = _train(plan, folder, python, rubric, on_step, after_step)
        merge_checkpoints(config, files, folder.checkpoints, python)
        last = folder.last_step()
        return Outcome(last, last >= config.run.steps and stopped_by is None, stopped_by)


def _begin(plan: VerlPlan, folder: RunFolder, python: str, versions: dict[str, Any], after_step: int) -> None:
    """Write what the run is made of: provenance.json, the problems, the command."""
    verl_provenance(folder.path / "provenance.json", plan, versions, after_step)
    if not after_step:
        plan.write_data()
    text = script(plan.config, plan.command, python, "bash", plan.notes())
    replace_file(plan.files.folder / "command.sh", text.encode())
    for remark in plan.command.remarks:
        logger.warning(remark)


def _train(
    plan: VerlPlan,
    folder: RunFolder,
    python: str,
    rubric: Rubric,
    on_step: Callable[[dict[str, Any]], None],
    after_step: int,
) -> int | None:
    """Start verl and watch it to its end; the signal that asked for it, where one did. RunError where verl failed."""
    config, files = plan.config, plan.files
    log, output = files.log(after_step), folder.path / "run.log"
    log.unlink(missing_ok=True)  # of a start that failed
    for dump in files.rollouts.glob("*.jsonl"):
        if dump.stem.isdecimal() and int(dump.stem) > after_step:
            dump.unlink()  # of steps that are computed again
    thought_open = bool(plan.command.settings.get(f"{REWARD_KWARGS}.thought_open"))
    dumped = (
        DumpedRollouts(config, files.rollouts, plan.problems, rubric, thought_open)
        if config.run.rollouts_every
        else None
    )
    printed: list[str] = []
    with (
        Tracking(config, folder) as tracking,
        open(output, "ab") as stream,
        Supervisor(poll_s=POLL_S, patience_s=PATIENCE_S, end=signal.SIGTERM) as supervisor,
    ):

        def report(record: dict[str, Any]) -> None:
            tracking.write(record)
            on_step(record)

        before = Before(tokens=folder.last_tokens_total())
        watch = Watch(config, folder, log, Translator(config, sources_of(plan.held_out)), dumped, report, before)
        logger.info(f"starting verl; what it prints is in {output}")
        lines = GrowingFile(output, output.stat().st_size)  # that sentence is in the file too
        environment = {**os.environ, HYDRA_FULL_ERROR: "1", "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "luspo_cli.processes.contained", *arguments(plan.command, python)]
        child = supervisor.start(command, environment, stream)
        while supervisor.running:
            supervisor.poll()
            folder.check_still_here()
            watch.look()
            new = lines.lines()
            printed = [*printed, *new][-400:]
            if folder.last_step() <= after_step:
                for line in new:
                    print(bare(line), file=sys.stderr, flush=True)
        watch.look(ended=True)
        printed = [*printed, *lines.lines()][-400:]
        if supervisor.signals:
            return supervisor.signals[0]
    if child.returncode:
        raise _failed(child.returncode, printed, folder, output)
    if folder.last_step() < config.run.steps:
        raise RunError(
            f"verl ended without an error after step {folder.last_step()} of {config.run.steps}: its data ended first (see"
            f" {output})"
        )
    return None


def _failed(status: int, printed: list[str], folder: RunFolder, output: Path) -> RunError:
    """verl's own last error on the screen, and the sentence about it."""
    shown, cause = last_error(printed)
    for line in shown:
        print(line, file=sys.stderr)
    last = folder.last_step()
    when = f"after step {last}" if last else "before its first step"
    advice = f"; go on with: luspo train --run {shlex.quote(str(folder.path))} --resume" if last else ""
    return RunError(
        f"verl failed with exit status {status} {when}: {cause or 'it said nothing'} (all it said: {output}){advice}"
    )
