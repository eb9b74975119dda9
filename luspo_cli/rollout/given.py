"""A sampler of rollouts that were drawn before: the first step and the held-out draws that forks of one replicate share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from luspo_cli.errors import RunError
from luspo_cli.records import Prompt, Rollout
from luspo_cli.rollout.sampler import OnFinished, SamplingOptions


class GivenRollouts:
    """Hands out groups by their place in the batch, as a sampler would have drawn them there."""

    def __init__(self, groups: Sequence[Sequence[Rollout]], file: object) -> None:
        """`groups`: [prompts of the whole batch][group_size]; `file`: what messages name as their origin."""
        self._groups, self._file = groups, file

    def sample_groups(
        self,
        prompts: Sequence[Prompt],
        options: SamplingOptions,
        on_progress: Callable[[int], None] | None = None,
        on_finished: OnFinished | None = None,
    ) -> list[list[Rollout]]:
        """RunError where a group does not answer its prompt."""
        first = options.first_row // options.group_size
        groups = [list(group) for group in self._groups[first : first + len(prompts)]]
        for place, prompt in enumerate(prompts):
            group = groups[place] if place < len(groups) else []
            fits = len(group) == options.group_size and all(rollout.prompt_tokens == prompt.tokens for rollout in group)
            if not fits:
                raise RunError(
                    f"{self._file} does not hold {options.group_size} responses to problem '{prompt.problem_id}', which comes"
                    f" there as number {first + place + 1}; move the run away and fork again"
                )
        if on_finished:
            for row, rollout in enumerate(rollout for group in groups for rollout in group):
                on_finished(row, rollout)
        return groups

    def load_weights(self, policy: Any) -> None:
        """Nothing: these were drawn under the weights of their time."""
