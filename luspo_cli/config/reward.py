"""The [reward] section: what a rollout is paid for, and how long a check of its answer may take.

Standard library only, as `objective` is: another trainer's process that scores with it has not our other dependencies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from luspo_cli.config.plain import PlainSection


@dataclass(frozen=True)
class RewardConfig(PlainSection):
    """reward = accuracy_weight * accuracy + format_weight * format + overlong_weight * overlong."""

    verifier: Literal["math", "exact"] = "math"
    """`math`: extract the final answer and compare with math-verify in a killable worker; `exact`: the response must be
    text, then `#answer`, then the end of the sequence (the made tasks)."""
    accuracy_weight: float = 1.0
    format: Literal["none", "boxed", "gsm8k", "answer-line"] = "none"
    """The form that earns the format reward: a closed `\\boxed{}`, a last line `#### N`, or a last line `Answer: ...`."""
    format_weight: float = 0.0
    overlong_buffer: int = 0
    """Tokens before the response limit over which DAPO's soft overlong penalty grows from 0 to -1 (DAPO, section 3.4); 0: off."""
    overlong_weight: float = 1.0
    """DAPO's penalty factor."""
    timeout_s: float = 5.0
    """Seconds one verification may take before its worker is killed and the answer counts as wrong."""
    workers: int = 0
    """Verification processes; 0: one a core, at most 8. Each of several training processes has its own."""

    def __post_init__(self) -> None:
        for key in ("overlong_buffer", "workers"):
            if getattr(self, key) < 0:
                raise ValueError(f"reward.{key} = {getattr(self, key)} must be 0 or more")
        if not (math.isfinite(self.timeout_s) and self.timeout_s > 0):
            raise ValueError(f"reward.timeout_s = {self.timeout_s} must be a positive number of seconds")
