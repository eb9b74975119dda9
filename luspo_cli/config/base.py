"""The strict base of every configuration section: unknown keys are refused, values are never coerced, nothing mutates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """A table of the configuration file."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def changed(self, *keys: str) -> list[str]:
        """Those of the section's `keys` whose value is not the default."""
        return [key for key in keys if getattr(self, key) != type(self).model_fields[key].default]

    def faults(self) -> Iterator[str]:
        """What does not fit together in the section, one sentence each; the first one refuses it."""
        yield from ()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for fault in self.faults():
            raise ValueError(fault)
        return self
