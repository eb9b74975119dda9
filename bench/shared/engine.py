"""Our engine as `luspo train` builds it, for benchmarks that hand its stages something of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from luspo_cli.config.layers import resolve_train
from luspo_cli.config.run import TrainRun
from luspo_cli.processes.ranks import joined
from luspo_cli.rewards.rubric import Rubric
from luspo_cli.runs.folder import RunFolder
from luspo_cli.runs.resume import open_run
from luspo_cli.training.loop import Stages
from luspo_cli.training.preflight import prepare
from luspo_cli.training.stages import make_stages

ONE_UPDATE = (
    "update.mini_batches=1", "update.noise_floor_every=0", "evaluation.every=0", "data.held_out=", "data.shuffle=false",
    "run.checkpoint_every=0", "run.checkpoint_last=false", "run.rollouts_every=0", "update.learning_rate=1e-6",
)  # fmt: skip
"""A step that is sampling, grading and one optimizer step, and stores nothing."""


def configuration(model: str, data: str, sets: Sequence[str], objective: str = "luspo") -> TrainRun:
    """The preset for a 0.5B model with these settings on top of `ONE_UPDATE`."""
    named = [f"model.path={model}", f"data.train={data}", *ONE_UPDATE, *sets]
    return resolve_train(preset="qwen2.5-0.5b", objective=objective, sets=named)


@contextmanager
def prepared_stages(config: TrainRun, path: Path, *, nothing_ends: bool = False) -> Iterator[tuple[Stages, RunFolder]]:
    """The stages of a run in folder `path`; `nothing_ends`: no token ends a response, so that all have the limit's length."""
    with ExitStack() as stack:
        ranks = stack.enter_context(joined(config.run.wait_for_processes_s))
        rubric = stack.enter_context(Rubric(config.reward, config.rollout.max_response_tokens))
        prepared = prepare(config, path, "refuse", rubric, ranks)
        if nothing_ends:
            prepared.loaded = replace(prepared.loaded, end_tokens=())
        folder = stack.enter_context(RunFolder(path))
        open_run(folder, config, "refuse", False)
        yield make_stages(config, prepared.loaded, prepared.problems, rubric, folder, None, None, ranks), folder


def sums_in(folder: Path, number: int = 64) -> str:
    """Problems of sums as `luspo prepare-data arithmetic` makes them, in this folder."""
    made = ["prepare-data", "arithmetic", "--size", str(max(64, number)), "--out", str(folder)]
    subprocess.run([sys.executable, "-m", "luspo_cli", *made], check=True, capture_output=True)
    return str(folder)
