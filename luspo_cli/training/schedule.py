"""The learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from luspo_cli.config.update import UpdateConfig

COSINE_FLOOR = 0.1


def learning_rate(step: int, steps: int, config: UpdateConfig) -> float:
    """Learning rate of training step `step` (counted from 0) of `steps`: linear ramp, then hold, line to 0 or cosine to 10 %."""
    if step < config.ramp_steps:
        return config.learning_rate * (step + 1) / config.ramp_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.ramp_steps) / max(1, steps - config.ramp_steps)
    if config.schedule == "linear":
        return config.learning_rate * (1.0 - done)
    return config.learning_rate * (COSINE_FLOOR + (1 - COSINE_FLOOR) * 0.5 * (1 + math.cos(math.pi * done)))
