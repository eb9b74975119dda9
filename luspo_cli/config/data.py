"""The [data] section: where problems come from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from luspo_cli.config.base import Section


class DataConfig(Section):
    """Training problems, and a held-out file for the evaluation during training."""

    train: str = ""
    """A file or folder written by `luspo prepare-data`, or a task made on the spot: `made:terms` (text), `made:pictures`
    (shapes, bars and clocks), or pictures of one kind, `made:pictures/shapes`, `/bars`, `/clock` or `/table`."""
    held_out: str = ""
    """Like `train`, for evaluation during training; with a made task fresh problems of another seed."""
    profile: Literal["neutral", "pays", "costs"] = "neutral"
    """For `made:terms`: how length relates to being right in the demonstrations (docs/experiments.md)."""
    shuffle: bool = True
    """Visit the problems in a seeded random order, a new one each epoch; false: in file order."""
    max_prompt_tokens: int = Field(default=1024, ge=1)
    """Problems with a longer prompt are left out before training, and counted."""
    max_pixels: int = Field(default=0, ge=0)
    """A vision model's images are made smaller to have at most so many pixels each (height times width); 0: as the model's own
    processor does. Checkpoints keep it."""
    min_pixels: int = Field(default=0, ge=0)
    """And made larger to have at least so many; 0: as the model's own processor does."""

    def faults(self) -> Iterator[str]:
        if self.max_pixels and self.min_pixels > self.max_pixels:
            yield f"data.min_pixels ({self.min_pixels}) must not exceed data.max_pixels ({self.max_pixels})"
