"""The [rollout] section: how many responses are sampled, and how."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from luspo_cli.config.base import Section


class RolloutConfig(Section):
    """Sampling of training responses. Sampling and training use the same temperature."""

    problems: int = Field(default=8, ge=1)
    """Problems a step."""
    group_size: int = Field(default=8, ge=2)
    """Rollouts a problem."""
    max_response_tokens: int = Field(default=512, ge=1)
    """The response limit: a response that reaches it is truncated."""
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    """0: off."""
    dynamic_sampling: bool = False
    """Sample further problems until `problems` groups have a signal (DAPO, arXiv 2503.14476, section 3.2)."""
    max_sampling_rounds: int = Field(default=8, ge=2)
    """With dynamic sampling: rounds a step at most, the first one included; each samples at most `problems` problems."""
    stop_after_steps_without_signal: int = Field(default=3, ge=1)
    """With dynamic sampling: the run stops with a diagnosis after this many steps in a row in which no group had a signal."""
    max_rows: int = Field(default=256, ge=1)
    """Responses in flight in the in-process sampler; a finished row's place goes to the next group."""

    @model_validator(mode="after")
    def _bounds_bind(self) -> RolloutConfig:
        for key in ("max_sampling_rounds", "stop_after_steps_without_signal"):
            default: Any = type(self).model_fields[key].default
            if not self.dynamic_sampling and getattr(self, key) != default:
                raise ValueError(
                    f"rollout.{key} needs rollout.dynamic_sampling = true; without it no step has a second round"
                )
        return self
