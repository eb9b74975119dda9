"""What the training loop and the evaluation ask of any sampler, and the numbers that fix its draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, overload

from luspo_cli.records import Prompt, Rollout

OnFinished = Callable[[int, Rollout], None]
"""Hears a rollout as soon as it is finished, and its row: prompt * group_size + its place in the group."""
P = TypeVar("P")
"""A problem, of training or of a benchmark."""


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How responses are drawn. `temperature` 0 is greedy; `seed` fixes the draws together with the row's place in the batch."""

    group_size: int
    max_response_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    first_row: int = 0
    """Place in the batch of the call's first row, where several processes sample one batch in parts."""
    with_experts: bool = False
    """Whether rollouts bring the experts that their tokens met; the sampler in the process alone can."""


class Sampler(Protocol):
    """Draws `group_size` rollouts for each prompt, groups in the order of the prompts."""

    def sample_groups(
        self,
        prompts: Sequence[Prompt],
        options: SamplingOptions,
        on_progress: Callable[[int], None] | None = None,
        on_finished: OnFinished | None = None,
    ) -> list[list[Rollout]]:
        """Return [number of prompts][group_size] rollouts; `on_progress` hears the count of finished rollouts.

        `on_finished` hears each of the returned rollouts once, in the order in which they end, from any thread but never two at a
        time; what it raises ends the call.

        `prompts` may make each prompt when it is asked for: ask once, and let its images go as soon as they are not needed.
        """

    def load_weights(self, policy: Any) -> None:
        """Take over the policy's current weights."""


class PromptsOnRequest(Sequence[Prompt], Generic[P]):
    """The prompts of problems, each made when it is asked for; a slice makes its own prompts only.

    Pixels are not kept: those of a thousand problems at once would fill the memory.
    """

    def __init__(self, problems: Sequence[P], to_prompt: Callable[[P], Prompt]) -> None:
        self.problems, self._to_prompt = problems, to_prompt

    def __len__(self) -> int:
        return len(self.problems)

    @overload
    def __getitem__(self, place: int) -> Prompt: ...

    @overload
    def __getitem__(self, place: slice) -> list[Prompt]: ...

    def __getitem__(self, place: int | slice) -> Prompt | list[Prompt]:
        """Raises what `to_prompt` does."""
        if isinstance(place, slice):
            return [self._to_prompt(problem) for problem in self.problems[place]]
        return self._to_prompt(self.problems[place])
