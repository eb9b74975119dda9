"""The count of parameters against a real model and against published sizes."""

from __future__ import annotations

import pytest

from doubles.models import random_qwen2
from luspo_cli.config.layers import resolve_train
from luspo_cli.config.model import ShapeConfig


@pytest.mark.parametrize("tied", [False, True])
def test_the_count_is_that_of_a_model_of_this_shape(tied: bool) -> None:
    shape = ShapeConfig(vocabulary=50, layers=3, width=24, heads=4, key_value_heads=2, feed_forward=40, tied_head=tied)
    model = random_qwen2(50, layers=3, width=24, heads=4, key_value_heads=2, feed_forward=40, tied=tied)
    assert shape.parameters() == sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize(("preset", "published"), [("qwen2.5-0.5b", 494_032_768), ("qwen2.5-7b", 7_615_616_512)])
def test_presets_have_the_published_sizes(preset: str, published: int) -> None:
    assert resolve_train(preset=preset).model.shape.parameters() == published
