"""What trainer and server must agree on before weights flow; imported on both sides, by the trainer without vllm."""

from __future__ import annotations

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
)
"""Of a model's configuration."""
