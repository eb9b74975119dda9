"""One record a stage of the pipeline, frozen and free of torch: Problem → Prompt → Rollout → Reward → ScoredGroup → RowUpdate.

Nothing here fills up later: a stage that knows more has a type of its own. Token sequences are tuples of ints;
`response_tokens` includes the end-of-sequence token where the model wrote one, since it is sampled and trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol

from luspo_cli.grading.verdict import Verdict


class StopReason(StrEnum):
    """Why a rollout ended."""

    END = "end"
    """The model wrote an end-of-sequence token."""
    LENGTH = "length"
    """The response limit cut it: the rollout is `truncated`."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a prompt. `content` holds one literal `<image>` for each image of the problem, in order."""

    role: str
    content: str


class ImageSource(Protocol):
    """One image of a problem: where it is, and not its pixels, which are made each time that they are asked for.

    Implementations are frozen and hold little, so that the problems of a whole file can be held and sent to other processes.
    """

    @property
    def name(self) -> str:
        """What tells it from other images, and what messages call it."""
        ...

    def load(self) -> Any:
        """The image as an upright RGB `PIL.Image`; UsageError where it is missing or cannot be read."""
        ...

    def size(self) -> tuple[int, int]:
        """Height and width in pixels, without decoding them; raises UsageError as `load` does."""
        ...


@dataclass(frozen=True, slots=True)
class Problem:
    """A prompt with a verifiable answer.

    Example:
        Problem("gsm8k/train/0", (Message("user", "What is 2+3?"),), "5", "gsm8k")
    """

    id: str
    prompt: tuple[Message, ...]
    answer: str
    data_source: str
    images: tuple[ImageSource, ...] = ()
    """In the order of the `<image>` marks."""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A problem as the model reads it: token ids [P] and, for vision models, what its processor made of the images."""

    problem_id: str
    tokens: tuple[int, ...]  # [P], image tokens included
    image_inputs: dict[str, Any] | None = None
    """`image_grid_thw` [images, 3] in patches, `mm_token_type_ids` [P] (1: image token), and either `pixel_values`
    [patches, values] or what a frozen vision tower made of them, `image_features` [image tokens, layers, width]."""
    thought_open: bool = False
    """Whether the chat template opened a thought (`<think>`) and left it open: the response begins inside it."""

    def without_images(self) -> Prompt:
        """The same prompt without what its images take in memory."""
        return self if self.image_inputs is None else replace(self, image_inputs=None)


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled response to one problem."""

    problem_id: str
    prompt_tokens: tuple[int, ...]  # [P]
    response_tokens: tuple[int, ...]  # [R], end-of-sequence token included
    response: str
    """Decoded without special tokens: what the verifier reads."""
    stop_reason: StopReason
    rollout_logprobs: tuple[float, ...] = ()
    """[R], natural log at the sampling temperature as the sampler saw them; empty where it was not asked for them."""
    thought_open: bool = False
    """The prompt's: whether the response begins inside a thought."""
    experts: bytes = b""
    """[P + R - 1, routers, k] int16: the experts that each token which was fed met; empty where they were not asked for."""

    @property
    def response_length(self) -> int:
        return len(self.response_tokens)

    @property
    def truncated(self) -> bool:
        return self.stop_reason is StopReason.LENGTH


@dataclass(frozen=True, slots=True)
class FunctionScore:
    """What one reward function of the user's own said of one rollout."""

    score: float | None
    """Unweighted; None where the function left it out (TRL's None) or failed."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Further numbers of the dict that it returned."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """What else that dict held."""
    error: str = ""
    """Why the call failed; empty where it did not."""


@dataclass(frozen=True, slots=True)
class Reward:
    """The reward of one rollout and its breakdown (terms unweighted; `total` is their weighted sum)."""

    total: float
    accuracy: float
    format: float
    overlong: float
    verdict: Verdict
    """Right or wrong, why, and where the answer was read."""
    functions: Mapping[str, FunctionScore] = field(default_factory=dict)
    """By name, in the order of `reward.function`; of one that failed `score` is what was paid all the same."""
    lengths: Mapping[str, float] = field(default_factory=dict)
    """The length terms that are asked for, by name; `gr3` is a factor."""


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """All rollouts of one problem with their rewards and advantages; the three tuples run in parallel."""

    problem: Problem
    rollouts: tuple[Rollout, ...]  # [G]
    rewards: tuple[Reward, ...]  # [G]
    advantages: tuple[float, ...]  # [G]
    prompt: Prompt | None = None
    """What the rollouts answer, as it was sampled from; None where a test or a tool has no need of it."""
    old_logprobs: tuple[tuple[float, ...], ...] | None = None
    """[G][R] of the policy that sampled, empty of a rollout that the update does not compute; None where they are not known yet:
    then the update computes them."""
    masked: tuple[float, ...] = ()
    """Rewards of rollouts that were taken out of the group and stay in its baseline."""

    def without_truncated(self) -> ScoredGroup:
        """The group without the rollouts that the limit cut, whose rewards go into `masked`; all other advantages stay."""
        kept = [place for place, rollout in enumerate(self.rollouts) if not rollout.truncated]
        return replace(
            self,
            rollouts=tuple(self.rollouts[place] for place in kept),
            rewards=tuple(self.rewards[place] for place in kept),
            advantages=tuple(self.advantages[place] for place in kept),
            masked=tuple(
                reward.total for reward, rollout in zip(self.rewards, self.rollouts, strict=True) if rollout.truncated
            ),
        )

    def without_images(self) -> ScoredGroup:
        """The same group without what its images take in memory."""
        return self if self.prompt is None else replace(self, prompt=self.prompt.without_images())


@dataclass(frozen=True, slots=True)
class RowUpdate:
    """What an update did with one rollout of its batch; clip fractions are shares of its sequence (0 or 1) or of its tokens."""

    mini_batch: int
    """Which one of the step trained on it, from 0."""
    sequence_ratio: float
    """exp of the mean over tokens of log π − log π_old."""
    clip_low_fraction: float
    """Units whose gradient the lower bound removed."""
    clip_high_fraction: float
    dual_clip_fraction: float
    loss_weight: float
    """What one of its tokens weighs in the loss, times the sequences of its mini-batch."""
    token_log_ratios: tuple[float, ...] = ()
    """[R], log π − log π_old; empty where it was not asked for."""
    experts_changed: tuple[int, ...] = ()
    """[R], layers in which a token's experts are others than for log π_old; empty where not asked for, and in a dense model."""

    @property
    def kept_fraction(self) -> float:
        """Units whose gradient no bound removed."""
        return 1 - self.clip_low_fraction - self.clip_high_fraction - self.dual_clip_fraction
