"""The [model] section: which weights start the run, and the numbers they are computed in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from luspo_cli.config.base import Section
from luspo_cli.config.kernels import KernelsConfig


class VisionShapeConfig(Section):
    """The size of the vision tower before the decoder; none while `depth` is 0, and the model reads text only."""

    family: Literal["qwen2_5_vl", "qwen2_vl"] = "qwen2_5_vl"
    """Which tower: Qwen2.5-VL's has gated feed-forwards, scales without shift, and windows."""
    depth: int = Field(default=0, ge=0)
    width: int = Field(default=64, ge=4)
    heads: int = Field(default=4, ge=1)
    feed_forward: int = Field(default=128, ge=8)
    patch: int = Field(default=14, ge=1)
    """Height and width of a patch in pixels."""
    temporal_patch: int = Field(default=2, ge=1)
    """Frames of a patch: an image stands in each of them."""
    merge: int = Field(default=2, ge=1)
    """An image token is made of this many patches in both directions."""
    window: int = Field(default=112, ge=1)
    """Height and width in pixels of what a patch sees (qwen2_5_vl)."""
    full_attention: tuple[int, ...] = Field(default=(), strict=False)
    """Blocks, counted from 0, in which a patch sees its whole image all the same."""

    def faults(self) -> Iterator[str]:
        if not self.depth:
            for key in self.changed(*sorted(self.model_fields_set)):
                yield f"model.shape.vision.{key} needs model.shape.vision.depth: at 0 there is no tower"
            return
        if self.width % (4 * self.heads):
            yield (
                f"model.shape.vision.width = {self.width} is no multiple of 4 times model.shape.vision.heads = {self.heads}:"
                " half of a head's width is for the row of a patch and half for its column, in pairs"
            )
        if self.family == "qwen2_vl" and self.feed_forward % self.width:
            yield (
                f"model.shape.vision.feed_forward = {self.feed_forward} is no multiple of model.shape.vision.width ="
                f" {self.width}, which family qwen2_vl needs"
            )
        if self.window < self.patch * self.merge:
            yield (
                f"model.shape.vision.window = {self.window} is smaller than one image token"
                f" ({self.patch * self.merge} pixels: patch times merge)"
            )
        if outside := [block for block in self.full_attention if not 0 <= block < self.depth]:
            yield f"model.shape.vision.full_attention names block {outside[0]}; there are 0 to {self.depth - 1}"

    @property
    def gated(self) -> bool:
        """Whether a block's feed-forward has three matrices instead of two."""
        return self.family == "qwen2_5_vl"

    @property
    def feature_layers(self) -> int:
        """Features of an image token that the language model is given."""
        return 1

    @property
    def patch_values(self) -> int:
        """Values of one patch as the processor makes it: three colours in every frame."""
        return 3 * self.temporal_patch * self.patch**2

    def parameters(self, text_width: int) -> int:
        """Number of weights: patch embedding, blocks, and the merger that makes image tokens of `text_width`."""
        if not self.depth:
            return 0
        width, merged, gated = self.width, self.width * self.merge**2, self.gated
        norm = width if gated else 2 * width
        attention = 4 * width * width + 4 * width
        if gated:
            feed_forward = 3 * width * self.feed_forward + 2 * self.feed_forward + width
        else:
            feed_forward = 2 * width * self.feed_forward + self.feed_forward + width
        merger = norm + merged * merged + merged + merged * text_width + text_width
        return self.patch_values * width + self.depth * (2 * norm + attention + feed_forward) + merger


class ExpertsShapeConfig(Section):
    """The experts of a decoder's layers; none while `number` is 0, and every layer has one feed-forward."""

    number: int = Field(default=0, ge=0)
    """Experts of a layer that a router chooses from."""
    per_token: int = Field(default=2, ge=1)
    """Of these, how many compute each token."""
    feed_forward: int = Field(default=96, ge=8)
    """Of one expert."""
    shared_feed_forward: int = Field(default=0, ge=0)
    """Of one more expert that computes every token; 0: none. With it a made model is a Qwen2-MoE, without it a Qwen3-MoE."""
    dense_layers: int = Field(default=0, ge=0)
    """Layers, the first ones, with one feed-forward all the same."""

    def faults(self) -> Iterator[str]:
        if not self.number:
            for key in self.changed(*sorted(self.model_fields_set)):
                yield f"model.shape.experts.{key} needs model.shape.experts.number: at 0 there are none"
        elif self.per_token > self.number:
            yield (
                f"model.shape.experts.per_token ({self.per_token}) must not exceed model.shape.experts.number"
                f" ({self.number})"
            )

    def parameters(self, width: int) -> int:
        """Number of weights of one layer's experts, their router, and the gate of a shared one."""
        shared = 3 * width * self.shared_feed_forward + width if self.shared_feed_forward else 0
        return self.number * (3 * width * self.feed_forward + width) + shared


class ShapeConfig(Section):
    """The size of a Qwen2 decoder, with a vision tower or without, or with `experts` of a Qwen3-MoE or Qwen2-MoE. It makes the
    model where `model.path` is `made`; elsewhere the dry run estimates with it while the model itself is not on this machine."""

    vocabulary: int = Field(default=32, ge=8)
    layers: int = Field(default=2, ge=1)
    width: int = Field(default=96, ge=8)
    heads: int = Field(default=3, ge=1)
    key_value_heads: int = Field(default=3, ge=1)
    feed_forward: int = Field(default=384, ge=8)
    tied_head: bool = False
    experts: ExpertsShapeConfig = ExpertsShapeConfig()
    vision: VisionShapeConfig = VisionShapeConfig()

    def parameters(self) -> int:
        """Number of weights: the decoder's, and those of the vision tower."""
        return self.decoder_parameters() + self.vision.parameters(self.width)

    def decoder_parameters(self) -> int:
        """Embeddings, attention with biases on q/k/v, gated feed-forward, norms, head."""
        vectors = self.layers * (self.attention_vectors() + 2 * self.width) + self.width
        embeddings = self.vocabulary * self.width * (1 if self.tied_head else 2)
        return embeddings + self.layer_matrices() + vectors

    def layer_matrices(self) -> int:
        """Number of weights of all layers' matrices: attention, feed-forwards, and experts with their routers."""
        attention = 2 * self.width * (self.heads + self.key_value_heads) * self.head_size
        dense = self.dense_layers
        feed_forwards = dense * 3 * self.width * self.feed_forward
        feed_forwards += (self.layers - dense) * self.experts.parameters(self.width)
        return self.layers * attention + feed_forwards

    @property
    def head_size(self) -> int:
        """Numbers of one attention head."""
        return self.width // self.heads

    def attention_vectors(self) -> int:
        """Number of weights of one layer's attention beside its matrices."""
        if self.experts.number and not self.experts.shared_feed_forward:
            return 2 * self.head_size  # Qwen3 scales queries and keys of a head and has no biases
        return (self.heads + 2 * self.key_value_heads) * self.head_size

    @property
    def dense_layers(self) -> int:
        """Layers with one feed-forward."""
        return self.experts.dense_layers if self.experts.number else self.layers

    def adapter_parameters(self, rank: int, targets: tuple[str, ...]) -> int:
        """Number of weights of adapters of `rank` on the targets among the seven matrices of every layer."""
        query_width, key_value_width = self.heads * self.head_size, self.key_value_heads * self.head_size
        sides = {
            "q_proj": self.width + query_width,
            "k_proj": self.width + key_value_width,
            "v_proj": self.width + key_value_width,
            "o_proj": query_width + self.width,
        }
        # Of experts, adapters reach the shared one alone.
        shared, dense = self.experts.shared_feed_forward, self.dense_layers
        outside = dense * (self.width + self.feed_forward)
        outside += (self.layers - dense) * (self.width + shared) if shared else 0
        feed_forwards = sum(target in ("gate_proj", "up_proj", "down_proj") for target in targets)
        return rank * (self.layers * sum(sides.get(target, 0) for target in targets) + feed_forwards * outside)


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

    def faults(self) -> Iterator[str]:
        for key in self.changed("alpha", "targets") if not self.rank else ():
            yield f"model.lora.{key} needs model.lora.rank: without a rank there are no adapters"
        if len(set(self.targets)) < len(self.targets):
            yield f"model.lora.targets names a layer twice: {', '.join(self.targets)}"


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
    kernels: KernelsConfig = KernelsConfig()
    shape: ShapeConfig = ShapeConfig()

    def faults(self) -> Iterator[str]:
        if self.lora.rank and self.freeze_vision:
            yield "model.freeze_vision changes nothing with model.lora: adapters are on the language model alone"
        if self.lora.rank and self.sharding == "full":
            yield (
                "model.sharding = full shares out float32 weights and model.lora holds its base in another type: set"
                " model.sharding = none (the base has no gradients or moments to share out)"
            )
