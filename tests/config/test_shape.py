"""The count of parameters against a real model and against published sizes."""

from __future__ import annotations

import pytest

from luspo_cli.config.layers import resolve_train
from luspo_cli.config.model import ShapeConfig


@pytest.mark.parametrize("tied", [False, True])
def test_the_count_is_that_of_a_model_of_this_shape(tied: bool) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = ShapeConfig(vocabulary=50, layers=3, width=24, heads=4, key_value_heads=2, feed_forward=40, tied_head=tied)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=50,
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
        )
    )
    assert shape.parameters() == sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize(("preset", "published"), [("qwen2.5-0.5b", 494_032_768), ("qwen2.5-7b", 7_615_616_512)])
def test_presets_have_the_published_sizes(preset: str, published: int) -> None:
    assert resolve_train(preset=preset).model.shape.parameters() == published
