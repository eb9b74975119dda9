"""The [evaluation] section: the held-out check during training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from luspo_cli.config.base import Section

Blind = Literal["none", "noise", "other"]
"""The blind control: no second measurement, or one with every image replaced by noise, or by another problem's image."""


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
    blind: Blind = "none"
    """A second time with the same draws: random pixels for every image, or another problem's images. What text alone gives."""
