"""From the rewards of one group to its advantages, in plain Python floats.

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


ADVANTAGES: Mapping[str, Callable[[Sequence[float]], list[float]]] = {
    "group_mean_std": group_mean_std,
    "group_mean": group_mean,
    "leave_one_out": leave_one_out,
}
