"""From a resolved configuration to a running loop: prepare, take up the run folder, build the stages, train.

Until `prepare` (preflight.py) returns, the run folder is as it was: an old run is replaced only by one that could start. The
first process of a run owns its folder and prints its messages. What only that one does stands under `if ranks.is_first` in a
`ranks.phase()`, at whose end every process knows whether it failed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from luspo_cli.config.run import TrainRun
from luspo_cli.policy.lora import load_adapter
from luspo_cli.processes.accelerate import rubric_workers
from luspo_cli.processes.ranks import Ranks, joined
from luspo_cli.processes.signals import stop_on_signals
from luspo_cli.rewards.rubric import Rubric
from luspo_cli.runs.checkpoints import Checkpoint, policy_folder, remove_unasked
from luspo_cli.runs.folder import IfExists, Outcome, RunFolder, unused_settings
from luspo_cli.runs.resume import open_run
from luspo_cli.runs.tracking import Tracking
from luspo_cli.training.dynamic_sampling import SignalWatch, TruncationWatch
from luspo_cli.training.loop import train
from luspo_cli.training.memory import peak_memory_gib, shortage_explained
from luspo_cli.training.noise_floor import NoiseWatch
from luspo_cli.training.preflight import Prepared, prepare
from luspo_cli.training.provenance import as_records, record_provenance
from luspo_cli.training.stages import make_stages
from luspo_cli.training.start import load_from

logger = logging.getLogger(__name__)


def run_training(
    config: TrainRun,
    path: Path,
    if_exists: IfExists,
    on_step: Callable[[dict[str, Any]], None],
    allow_changed: bool = False,
    on_begin: Callable[[], None] = lambda: None,
) -> Outcome:
    """Train as configured in run folder `path`; raises UsageError or RunError with one sentence.

    `on_step` is called with each step's record, on the first process of the run. `allow_changed`: go on although data, starting
    model or config.json are not what the run began with. `on_begin` is called on each process when the folder is this run's.
    """
    with ExitStack() as stack:
        ranks = stack.enter_context(joined(config.run.wait_for_processes_s))
        stack.enter_context(shortage_explained())
        reward = replace(config.reward, workers=rubric_workers(config.reward.workers, ranks))
        rubric = stack.enter_context(Rubric(reward, config.rollout.max_response_tokens))
        prepared = prepare(config, path, if_exists, rubric, ranks, allow_changed)
        folder = stack.enter_context(RunFolder(path))
        checkpoint = _take_up(prepared, folder, if_exists, ranks)
        on_begin()
        first_step = checkpoint.step if checkpoint else 0
        if first_step >= config.run.steps:
            return Outcome(first_step, finished=True)
        reference = _go_on_from(checkpoint, prepared, ranks) if checkpoint else None
        begins_at = checkpoint or prepared.parent
        stages = make_stages(config, prepared.loaded, prepared.problems, rubric, folder, begins_at, reference, ranks)
        report = stack.enter_context(_reporting(config, folder, on_step, ranks))
        with stop_on_signals() as stop_requested:
            last = train(config, stages, folder, first_step, report, stop_requested)
        if last == config.run.steps and not config.run.checkpoint_last and ranks.is_first:
            remove_unasked(folder.checkpoints, config.run.checkpoint_every)
        logger.info(f"peak memory of this process {peak_memory_gib():.1f} GiB")
        stopped_by = next((number for number in ranks.gather(stop_requested.signal) if number), None)
        return Outcome(last, last == config.run.steps, stopped_by)


def _take_up(prepared: Prepared, folder: RunFolder, if_exists: IfExists, ranks: Ranks) -> Checkpoint | None:
    """Make the run folder or take it up; the checkpoint to go on from, on every process."""
    checkpoint = None
    with ranks.phase():
        if ranks.is_first:
            checkpoint = open_run(folder, prepared.config, if_exists, bool(prepared.changes))
            first_step = checkpoint.step if checkpoint else 0
            if first_step < prepared.config.run.steps:
                for change in prepared.changes:
                    logger.warning(f"going on all the same: {change}")
                if prepared.new_settings:
                    folder.write_config(prepared.config.model_dump(mode="json"))
                for key, was, now in prepared.new_settings:
                    logger.info(f"{key} is {now} from here on ({was} before)")
                changes = as_records(prepared.changes)
                record_provenance(folder.path / "provenance.json", prepared.origin, first_step, changes)
            elif unused := unused_settings(prepared.new_settings):
                logger.warning(unused)
    return ranks.broadcast(checkpoint)


def _go_on_from(checkpoint: Checkpoint, prepared: Prepared, ranks: Ranks) -> Any:
    """Put the checkpoint's weights in the place of those the run began with; returns the latter where a KL term needs them."""
    config, folder = prepared.config, policy_folder(checkpoint.path)
    if config.model.lora.rank:
        with ranks.phase():
            load_adapter(prepared.loaded.model, folder)
        return None
    reference = prepared.loaded.model if config.objective.kl_coefficient > 0 else None
    del prepared.loaded  # first: these weights would stay in memory beside the checkpoint's
    with ranks.phase():
        prepared.loaded = load_from(config, folder, ranks)
    return reference


@contextmanager
def _reporting(
    config: TrainRun, folder: RunFolder, on_step: Callable[[dict[str, Any]], None], ranks: Ranks
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What the first process does with each record: hand it to the tracking writers, show it, warn or end the run."""
    with ExitStack() as stack:
        watches: list[Callable[[dict[str, Any]], None]] = []
        with ranks.phase():
            if ranks.is_first:
                tracking = stack.enter_context(Tracking(config, folder))
                signals = SignalWatch(config, folder.records())
                watches = [NoiseWatch(config), TruncationWatch(), tracking.write, on_step, signals]

        def report(metrics: dict[str, Any]) -> None:
            for watch in watches:  # the last of them may end the run
                watch(metrics)

        yield report
