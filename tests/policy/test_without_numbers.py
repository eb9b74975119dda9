"""A model whose weights another process has: all but their values is what loading it gives, and no weight is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from doubles.models import random_experts, random_qwen2, save
from doubles.vision import vision_model, vision_processor
from luspo_cli.config.model import ModelConfig
from luspo_cli.policy.loading import load_model
from luspo_cli.processes.sharding import twin

MODELS: dict[str, Callable[[], Any]] = {
    "Qwen2": lambda: random_qwen2(26),
    "Qwen3Moe": lambda: random_experts(26, "Qwen3Moe"),
    "Qwen2.5-VL": vision_model,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_everything_but_the_values_is_what_loading_gives(
    tmp_path: Path, made_tokenizer: Any, name: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, MODELS[name](), vision_processor() if name.endswith("VL") else made_tokenizer)
    config = ModelConfig(path=str(tmp_path), gradient_checkpointing=checkpointing)
    whole = load_model(config).model

    def read(*_: Any, **__: Any) -> Any:
        raise AssertionError("weights were read")

    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", read)
    model = load_model(config, numbers=False).model
    assert type(model) is type(whole)
    assert [(path, type(layer)) for path, layer in model.named_modules()] == [
        (path, type(layer)) for path, layer in whole.named_modules()
    ]
    assert described(model) == described(whole)
    held, wanted = dict(model.named_buffers()), dict(whole.named_buffers())
    assert held.keys() == wanted.keys()
    assert all(torch.equal(held[key], value) for key, value in wanted.items())  # no file holds them
    # With the values it computes what the other does: nothing else was left out.
    model.load_state_dict(whole.state_dict())
    tokens = torch.arange(3, 11)[None]
    assert torch.equal(model(input_ids=tokens).logits, whole(input_ids=tokens).logits)
    assert model.config.to_dict() == whole.config.to_dict()
    assert model.config.name_or_path == whole.config.name_or_path


def described(model: Any) -> list[tuple[Any, ...]]:
    """Name, shape, type, device and whether it is trained, of every weight."""
    return [(n, w.shape, w.dtype, w.device, w.requires_grad) for n, w in model.named_parameters(remove_duplicate=False)]


def test_a_twin_shares_its_numbers(make_model: Callable[..., Any]) -> None:
    model = make_model()
    other = twin(model)
    for (name, weight), (_, own) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert own is not weight, name
        assert own.data_ptr() == weight.data_ptr(), name
        assert weight.requires_grad
        assert not own.requires_grad


@pytest.mark.parametrize("tied", [False, True])
def test_ties_are_kept(tmp_path: Path, made_tokenizer: Any, tied: bool) -> None:
    save(tmp_path, random_qwen2(26, tied=tied), made_tokenizer)
    model = load_model(ModelConfig(path=str(tmp_path)), numbers=False).model
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
