"""A recorded decode step against the layers that it was recorded of: the same bits, whatever the shape and whoever's weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from luspo_cli.policy import attention
from luspo_cli.rollout.in_process.cache import Columns
from luspo_cli.rollout.in_process.decode_step import COLUMNS, ROWS, DecodeStep

LAYERS, VOCABULARY = 2, 26
SHAPES = [(1, 1), (7, 9), (ROWS, COLUMNS), (2, 70), (40, 3)]


def family(name: str, **settings: Any) -> Any:
    """A random model with grouped heads."""
    attention.register()
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "sliding_window": None}
    config = AutoConfig.for_model(name, **shape, **heads, pad_token_id=0, **settings)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME).eval()


def inputs(model: Any, rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Columns]:
    """A step with part of the columns unread, over views of a larger storage as the cache hands them out."""
    generator = torch.Generator().manual_seed(seed)
    width = model.config.hidden_size // model.config.num_attention_heads
    store = torch.randn(2 * LAYERS, rows, model.config.num_key_value_heads, columns + 6, width, generator=generator)
    states = [layer[:, :, 2 : 2 + columns] for layer in store]
    valid = torch.rand(rows, columns, generator=generator) < 0.7
    valid[:, -1] = True
    tokens = torch.randint(VOCABULARY, (rows,), generator=generator)
    positions = torch.randint(50, (rows,), generator=generator)
    return tokens, positions, valid, Columns(states[:LAYERS], states[LAYERS:])


@torch.inference_mode()
def check_equal(recorded: DecodeStep, layers: DecodeStep) -> None:
    for rows, columns in SHAPES:
        own, theirs = inputs(recorded.model, rows, columns), inputs(layers.model, rows, columns)
        assert torch.equal(recorded(*own), layers(*theirs))
        for mine, other in zip((*own[3].keys, *own[3].values), (*theirs[3].keys, *theirs[3].values), strict=True):
            assert torch.equal(mine, other)
    assert recorded.is_recorded
    assert not layers.is_recorded


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_recording_gives_the_bits_of_the_layers(name: str, tied: bool) -> None:
    model = family(name, tie_word_embeddings=tied)
    check_equal(DecodeStep(model), DecodeStep(model, record=False))


def test_weights_that_move_or_are_replaced_are_read(make_model: Callable[..., Any]) -> None:
    model = make_model()
    recorded, layers = DecodeStep(model), DecodeStep(model, record=False)
    check_equal(recorded, layers)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.5)  # as an optimizer does
    check_equal(recorded, layers)
    with torch.inference_mode():
        before = recorded(*inputs(model, 4, 4))
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach() * 2)
    model.model.norm.weight.data = torch.rand_like(model.model.norm.weight)
    check_equal(recorded, layers)
    with torch.inference_mode():
        assert not torch.equal(recorded(*inputs(model, 4, 4)), before)


def test_the_model_is_as_it_was_after_a_recording(make_model: Callable[..., Any]) -> None:
    model = make_model(tied=True)
    before = {name: id(weight) for name, weight in model.named_parameters()}
    with torch.inference_mode():
        DecodeStep(model)(*inputs(model, 4, 4))
    assert {name: id(weight) for name, weight in model.named_parameters()} == before
    assert model.lm_head.weight is model.model.embed_tokens.weight
    loss = model(torch.ones(1, 3, dtype=torch.long)).logits.sum()
    loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize("kind", ["bfloat16", "positions scaled by length", "a tensor beside the weights", "experts"])
def test_what_is_not_recorded(make_model: Callable[..., Any], kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """What could depend on numbers runs layer by layer, and nothing is said: it was never to be recorded."""
    model = make_model(dtype="bfloat16" if kind == "bfloat16" else "float32")
    if kind == "positions scaled by length":
        rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
        model = family("llama", rope_parameters=rope)
    elif kind == "a tensor beside the weights":
        model.model.layers[0].mlp.scale = torch.ones(3)
    elif kind == "experts":
        model = family("qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8)
    step, given = DecodeStep(model), inputs(model, 4, 4)
    columns = given[3]
    for store in (columns.keys, columns.values):
        store[:] = [states.to(model.dtype) for states in store]
    with torch.inference_mode(), caplog.at_level(logging.INFO):
        step(*given)
    assert not step.is_recorded
    assert not [record for record in caplog.records if record.name.startswith("luspo_cli")]


def test_a_recording_that_gives_other_numbers_is_not_kept(
    make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A layer that counts its rows in Python is recorded with the number that it saw."""
    model = make_model()
    mlp, rows = model.model.layers[0].mlp, Tensor.__len__
    plain = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda x: plain(x) * float(rows(x)))
    step, layers = DecodeStep(model), DecodeStep(model, record=False)
    with torch.inference_mode():
        for _ in range(2):
            assert torch.equal(step(*inputs(model, 4, 4)), layers(*inputs(model, 4, 4)))
    assert not step.is_recorded
    assert [record.getMessage() for record in caplog.records] == [
        "sampling runs the model's layers one by one: a decode step could not be recorded (it does not give the layers' own"
        " numbers)"
    ]
