"""`luspo train --probe`: a few responses of the base model before a run, through the run's own sampler, prompts and rewards.

They are the first ones that step 1 would draw. One update on them gives its time; it ends with this process, and nothing is
written.
"""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from luspo_cli.config.run import TrainRun
from luspo_cli.errors import UsageError
from luspo_cli.metrics.rollout_metrics import reward_metrics
from luspo_cli.processes.accelerate import rubric_workers
from luspo_cli.processes.ranks import joined
from luspo_cli.records import ScoredGroup
from luspo_cli.rewards.rubric import Rubric
from luspo_cli.runs.folder import IfExists, RunFolder
from luspo_cli.training.dynamic_sampling import StepGroups, is_mixed
from luspo_cli.training.image_delivery import deliver_images
from luspo_cli.training.loop import Stages
from luspo_cli.training.memory import shortage_explained
from luspo_cli.training.optimizer import learning_rate
from luspo_cli.training.preflight import prepare
from luspo_cli.training.probed import QUANTILES, Probe, probe_size, quantile
from luspo_cli.training.sampling import StepSampler, settled
from luspo_cli.training.stages import make_stages


def run_probe(config: TrainRun, path: Path, if_exists: IfExists) -> Probe:
    """Probe the run that would train in `path`; refuses what the run would refuse, and writes nothing."""
    if config.fork.checkpoint:
        raise UsageError("--probe asks the base model of a run, and a fork begins at a checkpoint: leave it out")
    with ExitStack() as stack:
        ranks = stack.enter_context(joined(config.run.wait_for_processes_s))
        if ranks.size > 1:
            raise UsageError("--probe runs in one process: start it without the launcher, with --set as for the run")
        stack.enter_context(shortage_explained())
        reward = replace(config.reward, workers=rubric_workers(config.reward.workers, ranks))
        rubric = stack.enter_context(Rubric(reward, config.rollout.max_response_tokens))
        prepared = prepare(config, path, if_exists, rubric, ranks)
        small = _small(config)
        stages = make_stages(small, prepared.loaded, prepared.problems, rubric, RunFolder(path), None, None, ranks)
        stages.refresh_sampler()
        sampler = StepSampler(config, 1, stages.sampler, rubric, stages.to_prompt, ranks)
        groups = sampler.sample(stages.problems.batch(0)[: probe_size(config)], 0)
        rubric.look("the probe", [reward for group in groups for reward in group.rewards], aloud=True)
        update_s = _update(stages, small, groups) if any(map(_has_signal, groups)) else 0.0
        return _probe(config, groups, sampler, update_s)


def _small(config: TrainRun) -> TrainRun:
    """The run with a batch of the probe's size: as many mini-batches of whole groups as go into it, no held-out check."""
    size = probe_size(config)
    mini_batches = max(n for n in range(1, config.update.mini_batches + 1) if size % n == 0)
    return config.model_copy(
        update={
            "rollout": config.rollout.model_copy(update={"problems": size}),
            "update": config.update.model_copy(update={"mini_batches": mini_batches}),
            "evaluation": config.evaluation.model_copy(update={"every": 0}),
        }
    )


def _update(stages: Stages, config: TrainRun, groups: list[ScoredGroup]) -> float:
    """Seconds of one update on the groups."""
    batch = settled(StepGroups([group.without_images() for group in groups], groups, 1), config).batch
    batch = deliver_images(batch, stages.updater, stages.ranks, False)
    started = time.perf_counter()
    stages.updater.update(batch, learning_rate(0, config.run.steps, config.update))
    return time.perf_counter() - started


def _probe(config: TrainRun, groups: list[ScoredGroup], sampler: StepSampler, update_s: float) -> Probe:
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    ordered = sorted(rollout.response_length for rollout in rollouts)
    rewards = reward_metrics(groups)
    return Probe(
        responses=len(rollouts),
        groups=len(groups),
        response_limit=config.rollout.max_response_tokens,
        lengths={
            "mean": statistics.fmean(ordered),
            **{f"p{percent}": quantile(ordered, percent) for percent in QUANTILES},
            "max": ordered[-1],
        },
        cut=sum(rollout.truncated for rollout in rollouts),
        reward=rewards["reward/total/mean"] or 0.0,
        accuracy=rewards["reward/accuracy/mean"] or 0.0,
        no_answer=rewards["reward/no_answer_fraction"] or 0.0,
        signal=sum(map(_has_signal, groups)),
        mixed=sum(map(is_mixed, groups)),
        sampling_s=sampler.times["time/rollout"],
        reward_s=sampler.times["time/reward"],
        update_s=update_s,
    )


def _has_signal(group: ScoredGroup) -> bool:
    """Whether some response of the group has an advantage."""
    return any(group.advantages)
