"""Taking up a run folder: its configuration read, then made anew or cut back to the checkpoint that the run goes on from."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from pydantic import ValidationError

from luspo_cli.config.run import TrainRun
from luspo_cli.errors import UsageError
from luspo_cli.runs.checkpoints import Checkpoint, newest_whole, remove_leftovers
from luspo_cli.runs.folder import IfExists, RunFolder
from luspo_cli.runs.tracking import Tracking

logger = logging.getLogger(__name__)


def open_run(folder: RunFolder, config: TrainRun, if_exists: IfExists, changed: bool) -> Checkpoint | None:
    """Make the run folder or take it up, cut back to the checkpoint that is returned; None before the first one.

    `changed`: data or starting weights are not what the run began with; then a start from step 0 repeats its evaluation too.
    """
    if not folder.open(config.model_dump(mode="json"), if_exists):
        return None
    if not config.run.checkpoint_last and folder.last_step() >= config.run.steps:
        raise UsageError(
            f"run {folder.path} is finished and kept no checkpoint of its last step (run.checkpoint_last = false): there is"
            " nothing to go on from"
        )
    checkpoint, notes = newest_whole(folder.checkpoints)
    for note in notes:
        logger.warning(f"{note}; going back to the one before")
    if checkpoint:
        remove_leftovers(folder.checkpoints, checkpoint.step, config.run.keep_checkpoints)
    step = checkpoint.step if checkpoint else 0
    folder.cut_back(-1 if changed and not checkpoint else step)  # -1: the evaluation before step 1 goes too
    if step >= config.run.steps:
        with Tracking(config, folder):  # hands over what a writer that failed does not have
            logger.info(f"run {folder.path} is finished: step {step} of {config.run.steps}")
    else:
        logger.info(f"going on after step {step}")
    return checkpoint


def require_run(run: Path) -> Path:
    """The stored configuration of the run that is to go on; UsageError where no run was begun there."""
    stored = run / "config.json"
    if not stored.is_file():
        raise UsageError(
            f"there is no run to resume in {run}: it has no config.json; start it with the command that was meant to"
        )
    return stored


def read_configuration(run: Path) -> TrainRun:
    """The configuration that a run was started with; UsageError where there is none that this version reads."""
    stored = require_run(run)
    try:
        return TrainRun.model_validate_json(stored.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {stored}: {error.strerror}; make it readable, or start a new run") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"{stored} is not a configuration that this version reads: {key + ': ' if key else ''}{first['msg']};"
            f" go on with the luspo that wrote it ({_version_of(run)}), or start a new run"
        ) from None


def _version_of(run: Path) -> str:
    """The luspo that began a run, as its provenance.json has it."""
    try:
        return f"version {json.loads((run / 'provenance.json').read_bytes())['luspo']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "provenance.json names its version"
