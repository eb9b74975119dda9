"""Adapted layers: the merged matrix by hand, the names and values of merged weights, and the model without its adapters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from luspo_cli.policy.lora import has_adapters, merged_weight, merged_weights, without_adapters

pytest.importorskip("peft", reason="adapters need the extra lora: pip install 'luspo[lora]'")
TOKENS = torch.arange(2, 22)[None]


@pytest.fixture
def make_adapted(make_model: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that builds the model of `make_model` with adapters that do something."""
    from peft import LoraConfig, inject_adapter_in_model

    def build(seed: int = 0, **options: Any) -> Any:
        model = make_model(seed, **options)
        inject_adapter_in_model(LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "o_proj", "up_proj"]), model)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
        return model

    return build


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=TOKENS, use_cache=False).logits
    return found


def test_a_merged_matrix_by_hand() -> None:
    """W = [[1, 2], [3, 4]], B A = [[2, 4], [0, 0]], scale 6 / 2: [[1 + 6, 2 + 12], [3, 4]]."""
    from peft import LoraConfig, inject_adapter_in_model

    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=6, target_modules=["0"]), model)
    layer: Any = model[0]
    with torch.no_grad():
        layer.base_layer.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        layer.lora_A["default"].weight.copy_(torch.tensor([[1.0, 2.0], [5.0, 7.0]]))
        layer.lora_B["default"].weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 0.0]]))
    assert torch.equal(merged_weight(layer), torch.tensor([[7.0, 14.0], [3.0, 4.0]]))
    assert torch.equal(layer.base_layer.weight, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))


@pytest.mark.parametrize("tied", [False, True])
def test_merged_weights_are_a_plain_model(
    make_model: Callable[..., Any], make_adapted: Callable[..., Any], tied: bool
) -> None:
    adapted, plain = make_adapted(0, tied=tied), make_model(1, tied=tied)
    merged = dict(merged_weights(adapted))
    assert list(merged) == [name for name, _ in plain.named_parameters()]
    plain.load_state_dict(merged, strict=not tied)
    assert not torch.allclose(logits(adapted), logits(make_model(0, tied=tied)), atol=0.1)  # the adapters do something
    assert torch.allclose(logits(adapted), logits(plain), atol=1e-4)
    assert has_adapters(adapted)
    assert not has_adapters(plain)


@pytest.mark.parametrize("tied", [False, True])
def test_of_a_model_without_adapters_they_are_its_parameters(make_model: Callable[..., Any], tied: bool) -> None:
    model = make_model(tied=tied)
    found = list(merged_weights(model))
    for (name, weight), (own, parameter) in zip(found, model.named_parameters(), strict=True):
        assert name == own
        assert weight.data_ptr() == parameter.data_ptr()  # no copy


def test_without_its_adapters_a_model_is_its_base(
    make_model: Callable[..., Any], make_adapted: Callable[..., Any]
) -> None:
    adapted = make_adapted()
    with_them = logits(adapted)
    with without_adapters(adapted):
        assert torch.equal(logits(adapted), logits(make_model()))
    assert torch.equal(logits(adapted), with_them)
    with pytest.raises(ZeroDivisionError), without_adapters(adapted):
        raise ZeroDivisionError
    assert torch.equal(logits(adapted), with_them)


def test_a_gradient_passes_a_forward_without_adapters(make_adapted: Callable[..., Any]) -> None:
    """The reference's pass stands between the policy's forward and backward: it must not change the gradient."""
    gradients = []
    for between in (False, True):
        model = make_adapted()
        loss = model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss
        if between:
            with torch.no_grad(), without_adapters(model):
                model(input_ids=TOKENS, use_cache=False)
        loss.backward()
        gradients.append({name: w.grad for name, w in model.named_parameters() if "lora_" in name})
    assert all(gradient is not None and gradient.any() for name, gradient in gradients[0].items() if "lora_A" in name)
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())
