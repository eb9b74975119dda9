"""The [reward] section: what a rollout is paid for, and how long a check of its answer may take."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from luspo_cli.config.base import Section


class RewardConfig(Section):
    """reward = accuracy_weight * accuracy + format_weight * format + overlong_weight * overlong."""

    verifier: Literal["math", "exact"] = "math"
    """`math`: extract the final answer and compare with math-verify in a killable worker; `exact`: the response must be
    text, then `#answer`, then the end of the sequence (the made tasks)."""
    accuracy_weight: float = 1.0
    format: Literal["none", "boxed", "gsm8k", "answer-line"] = "none"
    """The form that earns the format reward: a closed `\\boxed{}`, a last line `#### N`, or a last line `Answer: ...`."""
    format_weight: float = 0.0
    overlong_buffer: int = Field(default=0, ge=0)
    """Tokens before the response limit over which DAPO's soft overlong penalty grows from 0 to -1 (DAPO, section 3.4); 0: off."""
    overlong_weight: float = 1.0
    """DAPO's penalty factor."""
    timeout_s: float = Field(default=5.0, gt=0)
    """Seconds one verification may take before its worker is killed and the answer counts as wrong."""
    workers: int = Field(default=0, ge=0)
    """Verification processes; 0: one a core, at most 8. Each of several training processes has its own."""
