"""The [model] section: which weights start the run, and the numbers they are computed in."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

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

    def adapter_parameters(self, rank: int, targets: tuple[str, ...]) -> int:
        """Number of weights of adapters of `rank` on the targets among the seven matrices of every layer."""
        key_value_width = self.key_value_heads * (self.width // self.heads)
        sides = {
            "q_proj": self.width + self.width,
            "k_proj": self.width + key_value_width,
            "v_proj": self.width + key_value_width,
            "o_proj": self.width + self.width,
            "gate_proj": self.width + self.feed_forward,
            "up_proj": self.width + self.feed_forward,
            "down_proj": self.feed_forward + self.width,
        }
        return self.layers * rank * sum(sides.get(target, 0) for target in targets)


class LoraConfig(Section):
    """Low-rank adapters instead of the weights themselves (LoRA, arXiv 2106.09685); off while `rank` is 0."""

    rank: int = Field(default=0, ge=0)
    """Rank of the matrices B and A of every adapter; 0: train all weights. Needs the extra `lora`."""
    alpha: float = Field(default=32.0, gt=0)
    """An adapter adds alpha / rank times B A to its matrix."""
    targets: tuple[str, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        strict=False,
    )
    """Linear layers of the language model that get an adapter, by the last part of their name."""

    @model_validator(mode="after")
    def _adapters_are_on(self) -> LoraConfig:
        for key in self.changed("alpha", "targets") if not self.rank else ():
            raise ValueError(f"model.lora.{key} needs model.lora.rank: without a rank there are no adapters")
        if len(set(self.targets)) < len(self.targets):
            raise ValueError(f"model.lora.targets names a layer twice: {', '.join(self.targets)}")
        return self


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
    lora: LoraConfig = LoraConfig()
    sharding: Literal["none", "full"] = "none"
    """With several processes: each holds the whole policy (`none`: DDP), or a share of every weight, gradient and moment (`full`:
    FSDP2). Changes memory and speed, and the last bits of results."""
    shape: ShapeConfig = ShapeConfig()

    @model_validator(mode="after")
    def _adapters_fit(self) -> ModelConfig:
        if self.lora.rank and self.freeze_vision:
            raise ValueError(
                "model.freeze_vision changes nothing with model.lora: adapters are on the language model alone"
            )
        if self.lora.rank and self.sharding == "full":
            raise ValueError(
                "model.sharding = full shares out float32 weights and model.lora holds its base in another type: set"
                " model.sharding = none (the base has no gradients or moments to share out)"
            )
        return self
