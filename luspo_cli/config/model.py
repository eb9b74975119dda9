"""The [model] section: which weights start the run, and the numbers they are computed in."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from luspo_cli.config.base import Section


class ShapeConfig(Section):
    """The size of a Qwen2 decoder. It makes the model where `model.path` is `made`; elsewhere the dry run estimates with it
    while the model itself is not on this machine."""

    vocabulary: int = Field(default=32, ge=8)
    layers: int = Field(default=2, ge=1)
    width: int = Field(default=96, ge=8)
    heads: int = Field(default=3, ge=1)
    key_value_heads: int = Field(default=3, ge=1)
    feed_forward: int = Field(default=384, ge=8)
    tied_head: bool = False

    def parameters(self) -> int:
        """Number of weights: embeddings, attention with biases on q/k/v, gated feed-forward, norms, head."""
        head_width = self.width // self.heads
        key_value_width = self.key_value_heads * head_width
        attention = 2 * self.width * self.width + 2 * self.width * key_value_width + self.width + 2 * key_value_width
        layer = attention + 3 * self.width * self.feed_forward + 2 * self.width
        embeddings = self.vocabulary * self.width * (1 if self.tied_head else 2)
        return embeddings + self.layers * layer + self.width


class ModelConfig(Section):
    """The policy's starting weights."""

    path: str = "made"
    """A local folder, a hub id, or `made`: a small model made and warmed up on the spot ([warmup], [model.shape])."""
    revision: str = "main"
    """Of a hub id."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of forward and backward passes and of sampling; the weights that the optimizer moves are always float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third more time for far less memory."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you have read that code."""
    freeze_vision: bool = False
    """Leave a vision-language model's vision tower as it is; nothing to freeze in a model for text only."""
    sharding: Literal["none", "full"] = "none"
    """With several processes: each holds the whole policy (`none`: DDP), or a share of every weight, gradient and moment (`full`:
    FSDP2). Changes memory and speed, and the last bits of results."""
    shape: ShapeConfig = ShapeConfig()
