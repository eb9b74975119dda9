"""The objectives that weigh a token by the other responses to its prompt, once more as loops over Python floats.

As in loop_oracle: no code shared with ours, no mask, gradients as central differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from loop_oracle import Batch, clipped_value

Weight = Callable[[int, Batch, Sequence[int]], float]


def prompt_mean(i: int, batch: Batch, groups: Sequence[int]) -> float:
    """Mean over the tokens of a prompt, then over prompts that have one."""
    with_tokens = {group for group, row in zip(groups, batch.new, strict=True) if row}
    tokens = sum(len(row) for group, row in zip(groups, batch.new, strict=True) if group == groups[i])
    return 1 / len(with_tokens) / tokens


def balanced(i: int, batch: Batch, groups: Sequence[int]) -> float:
    """|P|/G over the tokens of P, for the set P of the prompt's responses with the sign of this one."""
    with_tokens = {group for group, row in zip(groups, batch.new, strict=True) if row}
    of_prompt = [j for j, row in enumerate(batch.new) if row and groups[j] == groups[i]]

    def sign(j: int) -> int:
        return (batch.advantages[j] > 0) - (batch.advantages[j] < 0)

    same = [j for j in of_prompt if sign(j) == sign(i)]
    return len(same) / len(of_prompt) / sum(len(batch.new[j]) for j in same) / len(with_tokens)


GROUP_FORMULAS: dict[str, Weight] = {"dapo_prompt_mean": prompt_mean, "balanced": balanced}
GROUP_CLIPS = {"dapo_prompt_mean": (0.2, 0.28), "balanced": (0.2, 0.28)}


def group_loss(name: str, batch: Batch, groups: Sequence[int]) -> float:
    low, high = GROUP_CLIPS[name]
    terms = []
    for i, row in enumerate(batch.new):
        for t, new in enumerate(row):
            value = clipped_value(math.exp(new - batch.old[i][t]), batch.advantages[i], low, high)
            terms.append(-GROUP_FORMULAS[name](i, batch, groups) * batch.weights[i][t] * value)
    return math.fsum(terms)


def group_gradient(name: str, batch: Batch, groups: Sequence[int], step: float = 1e-6) -> list[float]:
    """dL/d log π of every token, row after row."""
    found = []
    for i, row in enumerate(batch.new):
        for t in range(len(row)):
            values = []
            for sign in (1, -1):
                moved = [list(r) for r in batch.new]
                moved[i][t] += sign * step
                values.append(group_loss(name, Batch(moved, batch.old, batch.advantages, batch.weights), groups))
            found.append((values[0] - values[1]) / (2 * step))
    return found
