"""What a step may be handed so that two trainers do the same work: rewards, and responses that were drawn before.

Standard library only. A specification is one JSON object: `model`, `problems` [{id, prompt, answer}], `data`,
`problems_a_step`, `group_size`, `tokens`, `steps`, `warm_up`, `micro_rows`, `micro_tokens`, `clip`, `mode`, `recorded`,
`threads`; for ours `sets` and `off`, for TRL `variant`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODES = ("natural", "mixed", "half")
"""`natural`: the task's own rewards and lengths. `mixed`: every group has both rewards, and all responses the limit's length.
`half`: every other group has both rewards, and both trainers train on the same recorded responses."""
Spec = dict[str, Any]


def read_spec(path: str) -> Spec:
    """The specification in this file."""
    found: Spec = json.loads(Path(path).read_text(encoding="utf-8"))
    return found


def read_recorded(spec: Spec) -> list[list[list[int]]]:
    """[groups of all steps][rollouts] tokens of the responses that take the place of a trainer's own; only in mode `half`."""
    found: list[list[list[int]]] = json.loads(Path(spec["recorded"]).read_text(encoding="utf-8"))
    return found


def forced_reward(mode: str) -> Callable[[int, int], float] | None:
    """The reward of a rollout by the place of its group in the step and its own in the group; None where the task decides."""
    if mode == "natural":
        return None
    return lambda group, row: float(row % 2 == 0 and (mode == "mixed" or group % 2 == 0))


def last_number(text: str) -> str:
    """The last number in a text without commas, as plain rewards for GSM8K read it; empty where there is none."""
    found = re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))
    return found[-1] if found else ""
