"""The [warmup] section: supervised training that gives a made model something to reinforce."""

from __future__ import annotations

from pydantic import Field

from luspo_cli.config.base import Section


class WarmupConfig(Section):
    """Next-token training on demonstrations of the made task until the sampled accuracy is useful for RLVR."""

    steps: int = Field(default=0, ge=0)
    """At most this many, over which the learning rate falls to 5 %; 0: the task's own number (`made:terms` 300, of its `costs`
    profile 500; `made:pictures` 500, problems of a file 600)."""
    rows: int = Field(default=64, ge=1)
    """Demonstrations a step."""
    learning_rate: float = Field(default=3e-3, gt=0)
    ramp_steps: int = Field(default=50, ge=0)
    answer_weight: float = Field(default=2.0, gt=0)
    """Weight of the answer's tokens in the loss; the other tokens have 1."""
    router_aux_coefficient: float = Field(default=0.0, ge=0)
    """Of a model of experts: weight of the routers' load-balancing loss over a step's response tokens; 0: there is none."""
    check_every: int = Field(default=10, ge=1)
    """Steps between checks of the sampled accuracy, from the last fifth of the task's curriculum on (40 % of the steps; 15 %
    with problems of a file)."""
    stop_accuracy: float = Field(default=0.42, gt=0, lt=1)
    """The warm-up ends at the first check with this sampled accuracy that passes the gates below."""
    min_accuracy: float = Field(default=0.35, ge=0, le=1)
    max_accuracy: float = Field(default=0.6, ge=0, le=1)
    min_mixed_fraction: float = Field(default=0.7, ge=0, le=1)
    """Gate: least share of groups with both right and wrong answers."""
    max_length_correlation: float = Field(default=0.1, ge=0, le=1)
    """Gate of the `neutral` profile: largest |correlation| within prompts between length and being right."""
    min_length_spread: float = Field(default=0.6, ge=0)
    """Gate of the `neutral` profile: least standard deviation of the response length over its mean."""
    gate: bool = True
    """Refuse to train from a made model that misses a gate; false: warn."""
