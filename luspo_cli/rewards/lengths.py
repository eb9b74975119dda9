"""The reward terms that pay for length, each by the name that its metric and its weight have.

    kimi_length    Kimi k1.5 (arXiv 2501.12599): relative to the shortest and the longest response of the group
    lazy_length    Short-RL (arXiv 2505.12284): right responses alone, and only beyond a tolerance over the shortest right one
    cosine_length  Yeo et al. (arXiv 2502.03373): a cosine from a value at length 0 to one at the limit, for right and for wrong
    gr3            GR3 (arXiv 2603.10535, eq. 6): no summand but a factor of what the task pays

Lengths are tokens, the end-of-sequence token included. docs/data.md has the equations and says what each paper has beside them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from luspo_cli.config.reward import RewardConfig


def kimi_length(lengths: Sequence[int], correct: Sequence[bool]) -> list[float]:
    """[G]: λ = 0.5 - (length - shortest) / (longest - shortest) for right responses, min(0, λ) for wrong ones; 0 where all are
    equally long."""
    shortest, longest = min(lengths), max(lengths)
    if shortest == longest:
        return [0.0] * len(lengths)
    terms = [_slope(length, shortest, longest) for length in lengths]
    return [term if right else min(0.0, term) for term, right in zip(terms, correct, strict=True)]


def lazy_length(lengths: Sequence[int], correct: Sequence[bool], tolerance: int) -> list[float]:
    """[G]: 0 for wrong responses; for right ones 0.5 up to `tolerance` tokens over the shortest right one, beyond that Kimi's λ
    between the shortest and the longest right one."""
    own = [length for length, right in zip(lengths, correct, strict=True) if right]
    if not own:
        return [0.0] * len(lengths)
    shortest, longest = min(own), max(own)
    return [
        0.0 if not right else 0.5 if length <= shortest + tolerance else _slope(length, shortest, longest)
        for length, right in zip(lengths, correct, strict=True)
    ]


def _slope(length: int, shortest: int, longest: int) -> float:
    """Kimi's λ: 0.5 at the shortest length, -0.5 at the longest."""
    return 0.5 - (length - shortest) / (longest - shortest)


def cosine_length(
    length: int, limit: int, ends: tuple[float, float], at_limit: float, *, truncated: bool = False
) -> float:
    """Half a cosine from `ends[0]` at length 0 to `ends[1]` at the limit; `at_limit` for a response that reached the limit."""
    if truncated or length >= limit:
        return at_limit
    start, end = ends
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * length / limit))


def gr3_factors(lengths: Sequence[int], alpha: float) -> list[float]:
    """[G]: 1 / (1 + alpha * length / mean length of the group)."""
    mean = statistics.fmean(lengths)
    return [1 / (1 + alpha * (length / mean if mean else 0.0)) for length in lengths]


def length_terms(
    config: RewardConfig, limit: int, lengths: Sequence[int], truncated: Sequence[bool], correct: Sequence[bool]
) -> list[dict[str, float]]:
    """[G] name → value, unweighted, of the terms that `config` has, for the responses of one group; `limit` in tokens."""
    found: dict[str, Sequence[float]] = {}
    if config.kimi_length_weight:
        found["kimi_length"] = kimi_length(lengths, correct)
    if config.lazy_length_weight:
        found["lazy_length"] = lazy_length(lengths, correct, config.lazy_length_tolerance)
    if config.cosine_length_weight:
        found["cosine_length"] = [
            cosine_length(
                length,
                limit,
                config.cosine_length_correct if right else config.cosine_length_wrong,
                config.cosine_length_at_limit,
                truncated=cut,
            )
            for length, cut, right in zip(lengths, truncated, correct, strict=True)
        ]
    if config.gr3_alpha:
        found["gr3"] = gr3_factors(lengths, config.gr3_alpha)
    return [{name: values[place] for name, values in found.items()} for place in range(len(lengths))]
