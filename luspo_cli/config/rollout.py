"""The [rollout] section: how many responses are sampled, and how."""

from __future__ import annotations

from pydantic import Field

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
    max_rows: int = Field(default=256, ge=1)
    """Responses in flight in the in-process sampler; a finished row's place goes to the next group."""
