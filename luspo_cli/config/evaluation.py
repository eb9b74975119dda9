"""The [evaluation] section: the held-out check during training."""

from __future__ import annotations

from pydantic import Field

from luspo_cli.config.base import Section


class EvaluationConfig(Section):
    """Sampling on a fixed held-out slice before, during and after training."""

    every: int = Field(default=0, ge=0)
    """Training steps between evaluations (the first and the last policy are included); 0: off."""
    problems: int = Field(default=200, ge=1)
    """The first so many of `data.held_out`."""
    samples: int = Field(default=1, ge=1)
    """Responses a problem; accuracy is their mean."""
    temperature: float = Field(default=1.0, ge=0)
    """0: the most probable token each time (greedy)."""
    max_response_tokens: int = Field(default=0, ge=0)
    """0: the limit of training."""
