"""The [reward] section: what a rollout is paid for, and how long a check of its answer may take.

Standard library only, as `objective` is: another trainer's process that scores with it has not our other dependencies.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from luspo_cli.config.plain import PlainSection
from luspo_cli.function_path import parse_function_path

TAKEN_NAMES = (
    "total", "accuracy", "format", "overlong", "no_answer_fraction",
    "verification_timeouts", "verification_crashes", "read_from", "decided_by",
    "kimi_length", "lazy_length", "cosine_length", "gr3",
)  # fmt: skip
"""What stands behind reward/ in luspo's own metrics."""
LENGTH_TERMS = ("kimi_length", "lazy_length", "cosine_length", "gr3")
"""Terms that a response has only where they are asked for (rewards/lengths.py); a stored rollout has them as reward_NAME."""
LENGTH_KEYS = ("kimi_length_weight", "lazy_length_weight", "cosine_length_weight", "gr3_alpha")
"""What switches each of them on."""
BESIDE_ACCURACY = ("function", "format_weight", "overlong_buffer", *LENGTH_KEYS)
"""Keys that, where they are not 0 or empty, make the reward something else than accuracy."""
LARGEST_REWARD = 1e15
"""The largest size of a score, of a weight, and of a fixed pay. So a total is at most 1e30 a term: its square fits double
precision, and an advantage the single precision in which it is trained (up to 3.4e38)."""
_METRIC_NAME = re.compile(r"[A-Za-z_][\w.-]*")


@dataclass(frozen=True)
class RewardFunction(PlainSection):
    """A reward of the user's own: a Python function, its weight and the name of its numbers (docs/own-reward.md)."""

    function: str
    """`path/to/file.py:name` or `package.module:name`."""
    weight: float = 1.0
    name: str = ""
    """In the metrics, as reward/NAME/mean; empty: the function's own name."""
    completions: Literal["text", "messages"] = "text"
    """For a function that takes `completions`: each one as text, or as a list of one message as TRL gives them for chats."""

    def __post_init__(self) -> None:
        try:
            path = parse_function_path(self.function)
        except ValueError as error:
            raise ValueError(f"reward.function: {error}") from None
        _set(self, "function", str(path))
        _set(self, "name", self.name or path.name)
        if not _METRIC_NAME.fullmatch(self.name):
            raise ValueError(
                f"reward.function: the name '{self.name}' must be letters, digits, _, . and -, and begin with a letter"
            )
        if self.name in TAKEN_NAMES:
            raise ValueError(
                f"reward.function: '{self.name}' is a name of luspo's own metrics: give the function another one with"
                " { function = ..., name = ... }"
            )
        _refuse_too_large("function: the weight", self.weight)


@dataclass(frozen=True)
class RewardConfig(PlainSection):
    """reward = gr3 * (accuracy_weight * accuracy + format_weight * format + functions of one's own) + weighted length terms."""

    verifier: Literal["math", "exact", "function"] = "math"
    """`math`: extract the final answer and compare with math-verify in a killable worker; `exact`: the response must be
    text, then `#answer`, then the end of the sequence (the made tasks); `function`: the first of `function` says what is right,
    by its part `acc` or `correct`, without one by a score above 0."""
    accuracy_weight: float | None = None
    """None: 1, and with `function` 0, so that the functions alone are paid."""
    function: tuple[RewardFunction, ...] = ()
    """Rewards of one's own, weighted and added: `file.py:name`, or a list of such texts or of tables {function, weight, name}."""
    function_seconds: float = 10.0
    """Seconds that one call may take (for a whole group where the function takes one) before its worker is killed."""
    function_failed_score: float = 0.0
    """What a response is paid in the place of the score of a call that hung, crashed or returned no finite number."""
    format: Literal["none", "boxed", "gsm8k", "answer-line"] = "none"
    """The form that earns the format reward: a closed `\\boxed{}`, a last line `#### N`, or a last line `Answer: ...`."""
    format_weight: float = 0.0
    overlong_buffer: int = 0
    """Tokens before the response limit over which DAPO's soft overlong penalty grows from 0 to -1 (DAPO, section 3.4); 0: off."""
    overlong_weight: float = 1.0
    """DAPO's penalty factor."""
    kimi_length_weight: float = 0.0
    """Weight of Kimi k1.5's length reward, relative to the shortest and longest response of the group (docs/data.md); 0: off."""
    lazy_length_weight: float = 0.0
    """Weight of Short-RL's lazy length penalty: right responses alone, beyond a tolerance over the group's shortest right one."""
    lazy_length_tolerance: int = 0
    """Tokens over the shortest right response of the group that cost nothing yet."""
    cosine_length_weight: float = 0.0
    """Weight of the cosine reward; as in its paper it stands in the place of accuracy, with reward.accuracy_weight = 0."""
    cosine_length_correct: tuple[float, float] = (2.0, 1.0)
    """Of a right response of length 0, and of one as long as the limit."""
    cosine_length_wrong: tuple[float, float] = (-10.0, 0.0)
    """Of a wrong response, likewise."""
    cosine_length_at_limit: float = -10.0
    """Of a response that reached the limit, right or wrong."""
    truncated: Literal["keep", "mask", "penalise"] = "keep"
    """A response that the limit cut: `keep`: judged and trained as any other; `mask`: out of the loss and of all counts of the
    update, while its reward stays in its group's baseline; `penalise`: paid truncated_reward in the place of every term."""
    truncated_reward: float = 0.0
    """What a cut response is paid with truncated = "penalise"; 0: as a wrong one, the plain truncation penalty."""
    gr3_alpha: float = 0.0
    """GR3's strength: what the task pays times 1 / (1 + alpha * length / mean length of the group); 0: off."""
    timeout_s: float = 5.0
    """Seconds one verification may take before its worker is killed and the answer counts as wrong."""
    workers: int = 0
    """Verification processes; 0: one a core, at most 8. Each of several training processes has its own."""
    while_sampling: bool | None = None
    """Whether finished responses are graded while others are still decoded; the rewards are the same. None: where there is a GPU,
    since on a processor workers and decoding take the cores from each other."""

    def __post_init__(self) -> None:
        for key in ("overlong_buffer", "workers", "lazy_length_tolerance", "gr3_alpha"):
            if getattr(self, key) < 0:
                raise ValueError(f"reward.{key} = {getattr(self, key)} must be 0 or more")
        for key in ("timeout_s", "function_seconds"):
            if not (math.isfinite(getattr(self, key)) and getattr(self, key) > 0):
                raise ValueError(f"reward.{key} = {getattr(self, key)} must be a positive number of seconds")
        for key in _PAID:
            paid = getattr(self, key)
            for value in paid if isinstance(paid, tuple | list) else (paid,):
                _refuse_too_large(f"{key} =", value)
        if self.accuracy_weight is None:
            _set(self, "accuracy_weight", 0.0 if self.function else 1.0)
        if self.truncated != "penalise" and self.truncated_reward != 0:
            raise ValueError(
                'reward.truncated_reward changes nothing without reward.truncated = "penalise": set that too'
            )
        names = [one.name for one in self.function]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(
                f"reward.function has two functions named '{repeated}': give each a name of its own, {{function, weight, name}}"
            )
        if self.verifier == "function" and not self.function:
            raise ValueError("reward.verifier = 'function' needs reward.function, path/to/file.py:name")
        for key, needs in _OF_ANOTHER.items():
            if not getattr(self, needs) and getattr(self, key) != type(self).__dataclass_fields__[key].default:
                raise ValueError(f"reward.{key} changes nothing without reward.{needs}: set that too")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        schema = super().__get_pydantic_core_schema__(source, handler)
        return {"type": "function-before", "function": {"type": "no-info", "function": _as_tables}, "schema": schema}


_OF_ANOTHER = {
    "function_seconds": "function",
    "function_failed_score": "function",
    "lazy_length_tolerance": "lazy_length_weight",
    "cosine_length_correct": "cosine_length_weight",
    "cosine_length_wrong": "cosine_length_weight",
    "cosine_length_at_limit": "cosine_length_weight",
}
"""Keys that say nothing while another one is off."""
_PAID = (
    *(name for name in RewardConfig.__dataclass_fields__ if name.endswith("_weight")),
    "function_failed_score", "truncated_reward", "cosine_length_correct", "cosine_length_wrong", "cosine_length_at_limit",
)  # fmt: skip
"""Keys whose numbers enter the total."""


def _refuse_too_large(what: str, value: float | None) -> None:
    if value is not None and not abs(value) <= LARGEST_REWARD:  # so that a NaN is refused
        raise ValueError(f"reward.{what} {value:g} must lie between -{LARGEST_REWARD:g} and {LARGEST_REWARD:g}")


def _as_tables(values: Any) -> Any:
    """A section as it is written, with `function` as a list of tables, and pairs as pairs."""
    if not isinstance(values, Mapping):
        return values
    found = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    if "function" not in found:
        return found
    given = found["function"]
    several = given if isinstance(given, tuple) else [given] if given else []
    return {**found, "function": tuple({"function": one} if isinstance(one, str) else one for one in several)}


def _set(section: object, key: str, value: object) -> None:
    object.__setattr__(section, key, value)  # the one moment at which a frozen section may change: its own construction
