"""From the rewards of one group to its advantages, in plain Python floats; `advantages_of` for the groups of a batch.

A group whose rewards are all equal, float noise included, carries no signal and gets exactly 0.0 everywhere; so does a
group of one, which has nothing to be compared with (verl gives it its raw reward instead: mean 0, std 1). The standard
deviation has Bessel's correction and eps 1e-6, as in verl; TRL adds 1e-4.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

STD_EPSILON = 1e-6
# Rewards are sums of a few terms whose finest step (overlong, 1/buffer) is above 1e-5: what is closer is rounding.
SAME_REWARD = 1e-6


def has_signal(rewards: Sequence[float]) -> bool:
    """Whether the rewards of one group differ by more than rounding: max − min > 1e-6 · max(1, max|r|)."""
    if any(not math.isfinite(reward) for reward in rewards):
        raise ValueError(f"a reward is not a finite number: {list(rewards)}")
    if len(rewards) < 2:
        return False
    low, high = min(rewards), max(rewards)
    return high - low > SAME_REWARD * max(1.0, abs(low), abs(high))


def group_mean(rewards: Sequence[float]) -> list[float]:
    """A_i = r_i − mean(r) (Dr. GRPO, arXiv 2503.20783)."""
    if not has_signal(rewards):
        return [0.0] * len(rewards)
    mean = statistics.fmean(rewards)
    return [reward - mean for reward in rewards]


def group_mean_std(rewards: Sequence[float]) -> list[float]:
    """A_i = (r_i − mean(r)) / (std(r) + 1e-6), std with Bessel's correction (GRPO, arXiv 2402.03300)."""
    if not has_signal(rewards):
        return [0.0] * len(rewards)
    mean = statistics.fmean(rewards)
    std = math.sqrt(math.fsum((reward - mean) ** 2 for reward in rewards) / (len(rewards) - 1))
    return [(reward - mean) / (std + STD_EPSILON) for reward in rewards]


def leave_one_out(rewards: Sequence[float]) -> list[float]:
    """A_i = r_i − mean of the other rewards = G/(G−1) · (r_i − mean(r)) (RLOO, arXiv 2402.14740)."""
    if not has_signal(rewards):
        return [0.0] * len(rewards)
    mean, scale = statistics.fmean(rewards), len(rewards) / (len(rewards) - 1)
    return [scale * (reward - mean) for reward in rewards]


def max_rl(rewards: Sequence[float]) -> list[float]:
    """A_i = (r_i − mean(r)) / mean(r) (MaxRL, arXiv 2602.02710), made for rewards that are not negative.

    0 everywhere where the mean is not above 0: no response succeeded, and a negative mean would turn every sign around.
    """
    mean = statistics.fmean(rewards) if has_signal(rewards) else 0.0
    return [(reward - mean) / mean if mean > SAME_REWARD else 0.0 for reward in rewards]


BATCH_STD = "group_mean_batch_std"
"""The kind whose standard deviation is over the rewards of all groups."""


def advantages_of(
    kind: str | Callable[[Sequence[float]], list[float]], groups: Sequence[Sequence[float]]
) -> list[list[float]]:
    """Advantages of kind `kind`, or of a function of one group's rewards, for every group of a batch, [groups][rollouts].

    group_mean_batch_std: A_i = (r_i − mean of the group) / (std + 1e-6), std with Bessel's correction over all rewards of the
    batch (TRL's scale_rewards="batch", which adds 1e-4).
    """
    if kind != BATCH_STD:
        advantage = ADVANTAGES[kind] if isinstance(kind, str) else kind
        return [advantage(rewards) for rewards in groups]
    everything = [reward for rewards in groups for reward in rewards]
    scale = statistics.stdev(everything) + STD_EPSILON if len(everything) > 1 else 1.0
    return [[advantage / scale for advantage in group_mean(rewards)] for rewards in groups]


ADVANTAGES: Mapping[str, Callable[[Sequence[float]], list[float]]] = {
    "group_mean_std": group_mean_std,
    "group_mean": group_mean,
    "leave_one_out": leave_one_out,
    "max_rl": max_rl,
}
"""Kind → function of one group's rewards; `advantages_of` knows the one kind that looks at the whole batch."""
