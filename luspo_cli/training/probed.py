"""What a probe of 32 responses found, and what each number implies for the run, in a sentence. Pure Python, no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from luspo_cli.config.run import TrainRun
from luspo_cli.metrics.intervals import wilson_interval

RESPONSES = 32
"""Of a probe, in whole groups; one group at least, and at most what one step draws."""
MANY_CUT = 0.1
ROOMY = 4
"""A limit so many times the longest response has room to spare."""
QUANTILES = (10, 25, 50, 75, 90)


@dataclass(frozen=True, slots=True)
class Probe:
    """Numbers of the probe; times are seconds."""

    responses: int
    groups: int
    response_limit: int
    lengths: Mapping[str, float]
    """`mean`, `p10` to `p90`, `max` in tokens; what was cut stands at the limit."""
    cut: int
    """Responses that the limit cut."""
    reward: float
    """Mean of the total."""
    accuracy: float
    no_answer: float
    """Share in which no final answer was found."""
    signal: int
    """Groups whose rewards differ: only they move the weights."""
    mixed: int
    """Groups with right and wrong responses."""
    sampling_s: float
    reward_s: float
    update_s: float
    """Of one update on the groups with a signal; 0 where there is none."""

    @property
    def cut_share(self) -> float:
        return self.cut / self.responses


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of one training step: `least` where the sampler draws all that it holds as fast as the probe, `most` where twice
    the responses take twice as long."""

    least: float
    most: float


def probe_size(config: TrainRun) -> int:
    """Groups of the probe."""
    return min(config.rollout.problems, max(1, RESPONSES // config.rollout.group_size))


def quantile(ordered: list[int], percent: int) -> int:
    """The smallest length that so many percent do not exceed."""
    return ordered[max(0, math.ceil(percent * len(ordered) / 100) - 1)]


def step_time(probe: Probe, config: TrainRun) -> StepTime:
    """What a step of the run would take, with the rounds that dynamic sampling is likely to need."""
    rollout = config.rollout
    rounds = 1.0
    if rollout.dynamic_sampling:
        rounds = min(rollout.max_sampling_rounds, probe.groups / probe.mixed if probe.mixed else math.inf)
    rows = rollout.problems * rollout.group_size
    times = rows / probe.responses
    waves = math.ceil(rows / max(rollout.max_rows, probe.responses))
    update = probe.update_s * times
    if rollout.dynamic_sampling and probe.signal:  # then every group of the batch has one
        update *= probe.groups / probe.signal
    rewards = probe.reward_s * times * rounds
    return StepTime(
        probe.sampling_s * min(waves, times) * rounds + rewards + update,
        probe.sampling_s * times * rounds + rewards + update,
    )


def findings(probe: Probe, config: TrainRun) -> list[str]:
    """What the numbers imply, one sentence or two each."""
    return [
        *_of_size(config),
        *_of_lengths(probe, config),
        *_of_rewards(probe, config),
        *_of_groups(probe, config),
        *_of_time(probe, config),
    ]


def _of_size(config: TrainRun) -> Iterator[str]:
    problems, size = config.rollout.problems, config.rollout.group_size
    if (rows := problems * size) < RESPONSES:
        yield (
            f"{rows} responses and not {RESPONSES}: a step of the run draws no more (rollout.problems = {problems},"
            f" rollout.group_size = {size})."
        )


def _of_lengths(probe: Probe, config: TrainRun) -> Iterator[str]:
    limit, longest = probe.response_limit, int(probe.lengths["max"])
    if not probe.cut:
        yield f"No response would be cut: the longest has {longest} of rollout.max_response_tokens = {limit} tokens."
        if longest * ROOMY < limit:
            yield f"The limit has room to spare: {2 * longest} would do for now, and a step would need less memory."
        return
    low, high = wilson_interval(probe.cut_share, probe.responses)
    share = f"{probe.cut_share:.0%} would be cut ({probe.cut} of {probe.responses}; 95 %: {low:.0%} to {high:.0%})"
    if probe.cut == probe.responses:
        yield f"{share}: raise rollout.max_response_tokens ({limit}); how long responses are is not known before that."
    elif probe.cut_share >= MANY_CUT:
        yield f"{share}: raise rollout.max_response_tokens ({limit})."
    else:
        yield f"{share}: few; watch response/truncated_fraction, since lengths may grow."
    if config.reward.truncated == "mask":
        yield "Cut responses are left out of the update (reward.truncated = 'mask'): a step trains on the rest alone."
    elif config.reward.truncated == "penalise":
        yield f"Each cut response is paid {config.reward.truncated_reward:g} (reward.truncated = 'penalise')."
    else:
        yield "A cut response mostly has no answer and is paid as a wrong one: a pull towards shorter ones, for no reason."


def _of_rewards(probe: Probe, config: TrainRun) -> Iterator[str]:
    judged = config.reward.verifier != "function"
    right = f", {probe.accuracy:.0%} right" if judged else ""
    yield f"Mean reward {probe.reward:.3f}{right}."
    if judged and probe.no_answer >= 0.5:
        yield (
            f"In {probe.no_answer:.0%} no final answer is found: the model does not write it where the grader looks, or is cut"
            " before it does; look at the prompt and the answer mark first."
        )
    elif judged and probe.accuracy == 0:
        yield "No response is right: take easier problems or a stronger model, or look whether the grader reads the answers."
    elif judged and probe.accuracy == 1:
        yield "Every response is right: these problems teach nothing; take harder ones."


def _of_groups(probe: Probe, config: TrainRun) -> Iterator[str]:
    problems, share = config.rollout.problems, probe.signal / probe.groups
    said = f"{probe.signal} of {probe.groups} groups have a learning signal"
    if not probe.signal:
        yield (
            f"{said}: all responses to a problem have one reward, so nothing would move. Take problems that are solved"
            " now and then, or a larger rollout.group_size."
        )
        return
    yield f"{said}: of the {problems} groups of a step about {share * problems:.0f} would move the weights."
    if share <= 0.5 and not config.rollout.dynamic_sampling:
        yield (
            f"rollout.dynamic_sampling = true would fill each batch with such groups, for about {1 / share:.1f} times the"
            " sampling."
        )


def _of_time(probe: Probe, config: TrainRun) -> Iterator[str]:
    time = step_time(probe, config)
    rows = config.rollout.problems * config.rollout.group_size
    missing = "" if probe.update_s else ", the update not counted, which had nothing to train on"
    unit, size = ("hours", 3600) if time.most * config.run.steps >= 3600 else ("minutes", 60)
    least, most = (seconds * config.run.steps / size for seconds in (time.least, time.most))
    yield (
        f"A step of {rows} responses takes about {_range(time.least, time.most)} s{missing}: from {probe.responses} responses,"
        f" sampling {probe.sampling_s:.3g} s, rewards {probe.reward_s:.3g} s, update {probe.update_s:.3g} s, warming up included."
        f" {config.run.steps} steps: {_range(least, most)} {unit}, without evaluations and checkpoints."
    )


def _range(least: float, most: float) -> str:
    low, high = f"{least:.2g}", f"{most:.2g}"
    return low if low == high else f"{low} to {high}"
