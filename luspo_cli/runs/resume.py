"""Taking up a run folder: made anew, or cut back to the checkpoint that the run goes on from."""

from __future__ import annotations

import logging

from luspo_cli.config.run import TrainRun
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
