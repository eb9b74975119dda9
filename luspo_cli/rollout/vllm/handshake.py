"""What trainer and server must agree on before weights flow; imported on both sides, by the trainer without vllm."""

from __future__ import annotations

from typing import Any

PROTOCOL = 1
"""Raise when the two sides of a push would no longer understand each other."""
SHAPE_KEYS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "tie_word_embeddings",
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
)
"""Of a model's configuration."""
VISION_KEYS = ("depth", "hidden_size", "num_heads", "patch_size", "spatial_merge_size", "temporal_patch_size")
"""Of the configuration of its vision tower, where it has one."""


def shape_of(config: Any) -> dict[str, Any]:
    """Both sides' view of a model: entries of its configuration, those of a vision tower as `vision.KEY`."""
    text, vision = config.get_text_config(), getattr(config, "vision_config", None)
    found = {key: getattr(text, key, None) for key in SHAPE_KEYS}
    # It stands outside the text part where there is a vision part.
    found["tie_word_embeddings"] = getattr(config, "tie_word_embeddings", None)
    if vision is not None:
        found |= {f"vision.{key}": getattr(vision, key, None) for key in VISION_KEYS}
    return found
