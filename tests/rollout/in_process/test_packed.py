"""The bfloat16 sampling copy: as good as the plain bfloat16 model, and in step with the weights after an update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from luspo_cli import machine
from luspo_cli.records import Prompt
from luspo_cli.rollout.in_process import packed
from luspo_cli.rollout.in_process.packed import (
    PackedLinear,
    bfloat16_copy,
    can_pack,
    copy_weights,
    float32_copy,
    release_weights,
)
from luspo_cli.rollout.in_process.sampler import InProcessSampler
from luspo_cli.rollout.sampler import SamplingOptions

TOKENS = torch.arange(2, 22)[None]


def in_bfloat16(model: nn.Module) -> nn.Module:
    """`model` with its weights in bfloat16; `model.to` would round the rotary frequencies too, a buffer."""
    for weight in model.parameters():
        weight.data = weight.data.to(torch.bfloat16)
    return model


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits.float()  # type: ignore[no-any-return]


@pytest.mark.parametrize("tied", [False, True])
def test_the_copy_computes_what_the_bfloat16_model_computes(make_model: Callable[..., Any], tied: bool) -> None:
    model = make_model(tied=tied)
    plain, exact = logits(in_bfloat16(make_model(tied=tied))), logits(model)
    found = logits(bfloat16_copy(model))
    rounding = (plain - exact).abs().max()
    assert rounding > 1e-3  # bfloat16 did round
    assert (found - plain).abs().max() <= rounding
    assert torch.nn.functional.cosine_similarity(found.flatten(), exact.flatten(), dim=0) > 0.999


@pytest.mark.parametrize("tied", [False, True])
def test_the_copy_follows_an_update(make_model: Callable[..., Any], tied: bool) -> None:
    model = make_model(0, tied=tied)
    twin = bfloat16_copy(model)
    before = logits(twin)
    with torch.no_grad():
        for own, other in zip(model.parameters(), make_model(1, tied=tied).parameters(), strict=True):
            own.copy_(other)
    assert torch.equal(logits(twin), before)  # nothing moves by itself
    copy_weights(model, twin)
    assert torch.equal(logits(twin), logits(bfloat16_copy(model)))
    assert not torch.allclose(logits(twin), before, atol=0.1)


def test_every_weight_reaches_the_copy(make_model: Callable[..., Any]) -> None:
    """Each parameter alone: a layer that `copy_weights` forgot would leave the copy as it was."""
    for name, _ in make_model().named_parameters():
        if name.endswith("k_proj.bias"):  # a key bias shifts all scores of a query alike: no effect at all
            continue
        model = make_model()
        twin = bfloat16_copy(model)
        before = logits(twin)
        with torch.no_grad():
            weight = dict(model.named_parameters())[name]
            weight += torch.linspace(0.1, 0.9, weight.numel()).view_as(weight)
        copy_weights(model, twin)
        assert not torch.equal(logits(twin), before), name


def test_the_original_is_untouched_and_the_copy_is_frozen(make_model: Callable[..., Any]) -> None:
    model = make_model()
    twin = bfloat16_copy(model)
    assert all(weight.dtype == torch.float32 and weight.requires_grad for weight in model.parameters())
    assert not any(weight.requires_grad for weight in twin.parameters())
    if can_pack(next(twin.parameters())):
        assert sum(isinstance(layer, PackedLinear) for layer in twin.modules()) == 2 * 7 + 1


def test_without_the_operators_the_plain_layers_serve(
    make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luspo_cli.rollout.in_process.packed.can_pack", lambda weight: False)
    model = make_model()
    twin = bfloat16_copy(model)
    assert not any(isinstance(layer, PackedLinear) for layer in twin.modules())
    assert torch.equal(logits(twin), logits(in_bfloat16(make_model())))
    with torch.no_grad():
        model.model.norm.weight.mul_(2.0)
    copy_weights(model, twin)
    assert torch.equal(logits(twin), logits(bfloat16_copy(model)))


def test_the_sampler_runs_on_the_copy(make_model: Callable[..., Any], made_tokenizer: Any) -> None:
    sampler = InProcessSampler(bfloat16_copy(make_model()), made_tokenizer, (1, 5), 6)
    groups = sampler.sample_groups([Prompt("a", (3, 4, 5)), Prompt("b", (7,))], SamplingOptions(4, 12, seed=2))
    assert [len(group) for group in groups] == [4, 4]
    assert all(logprob <= 0 for group in groups for rollout in group for logprob in rollout.rollout_logprobs)


def test_positions_are_not_rounded(make_model: Callable[..., Any]) -> None:
    """Rotary frequencies in bfloat16 are off by up to 2^-9: at position 1000 that is up to two radians."""
    model = make_model()
    frequencies = model.model.rotary_emb.inv_freq
    twin: Any = bfloat16_copy(model)
    assert torch.equal(twin.model.rotary_emb.inv_freq, frequencies)
    rounded = frequencies.to(torch.bfloat16).float()
    assert ((rounded - frequencies) / frequencies).abs().max() > 1e-4


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("blocked", [True, False])
def test_a_model_with_adapters_is_copied_merged(
    make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tied: bool, blocked: bool
) -> None:
    """The copy of an adapted model is the copy of the plain model that its merged weights make, before and after a step."""
    pytest.importorskip("peft", reason="adapters need the extra lora: pip install 'luspo[lora]'")
    from luspo_cli.config.model import ModelConfig
    from luspo_cli.policy.lora import adapter_parameters, add_adapters, has_adapters, merged_weights

    if not blocked:
        monkeypatch.setattr("luspo_cli.rollout.in_process.packed.can_pack", lambda weight: False)
    model, plain = make_model(tied=tied), make_model(1, tied=tied)
    config = ModelConfig.model_validate({"path": "x/y", "compute_dtype": "bfloat16", "lora": {"rank": 3}})
    add_adapters(model, config, 0, "x/y")
    twin = bfloat16_copy(model)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        with torch.no_grad():
            for weight in adapter_parameters(model).values():
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
        copy_weights(model, twin)
        plain.load_state_dict(dict(merged_weights(model)), strict=False)
        assert torch.equal(logits(twin), logits(bfloat16_copy(plain)))
        assert torch.equal(logits(twin), logits(bfloat16_copy(model)))
    assert not has_adapters(twin)
    assert not any(weight.requires_grad for weight in twin.parameters())
    embedding = model.model.embed_tokens.weight
    assert dict(twin.named_parameters())["model.embed_tokens.weight"].data_ptr() == embedding.data_ptr()  # shared
    release_weights(model, twin)
    copy_weights(model, twin)
    assert torch.equal(logits(twin), logits(bfloat16_copy(model)))


@pytest.mark.parametrize("kind", ["packed", "plain", "float32"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_released_copy_holds_nothing_and_comes_back(
    make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, kind: str, tied: bool
) -> None:
    import copy

    if kind == "plain":
        monkeypatch.setattr(packed, "can_pack", lambda weight: False)
    model = make_model(0, tied=tied)
    before = [weight.detach().clone() for weight in model.parameters()]
    twin = copy.deepcopy(model).requires_grad_(False) if kind == "float32" else bfloat16_copy(model)
    expected = logits(twin)
    release_weights(model, twin)
    assert sum(weight.numel() for weight in twin.parameters()) == 0
    assert all(layer.packed is None for layer in twin.modules() if isinstance(layer, PackedLinear))
    assert all(map(torch.equal, model.parameters(), before))
    copy_weights(model, twin)
    assert torch.equal(logits(twin), expected)


def test_what_a_copy_shares_is_not_released(make_model: Callable[..., Any]) -> None:
    model = in_bfloat16(make_model(tied=False)).requires_grad_(False)
    twin = bfloat16_copy(model)
    release_weights(model, twin)
    assert all(weight.numel() for weight in model.parameters())
    assert twin.get_submodule("model.embed_tokens").weight is model.get_submodule("model.embed_tokens").weight


@pytest.mark.parametrize("tied", [False, True])
def test_the_float32_copy_computes_what_the_model_does_and_follows_it(
    make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    """On a processor that multiplies bfloat16 too: the blocked layout is there, only not chosen."""
    monkeypatch.setattr(packed, "multiplies_bfloat16", lambda: False)
    model = make_model(0, tied=tied)
    twin = float32_copy(model)
    assert sum(isinstance(layer, PackedLinear) for layer in twin.modules()) == 2 * 7 + 1
    torch.testing.assert_close(logits(twin), logits(model), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        for own, other in zip(model.parameters(), make_model(1, tied=tied).parameters(), strict=True):
            own.copy_(other)
    assert not torch.allclose(logits(twin), logits(model), atol=0.1)  # nothing moves by itself
    copy_weights(model, twin)
    torch.testing.assert_close(logits(twin), logits(model), rtol=1e-5, atol=1e-5)
    release_weights(model, twin)
    assert all(weight.requires_grad and weight.numel() for weight in model.parameters())


def test_the_float32_copy_draws_the_same_tokens(
    make_model: Callable[..., Any], made_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "multiplies_bfloat16", lambda: False)
    model = make_model()
    prompts, draws = [Prompt("a", (3, 4, 5)), Prompt("b", (7,))], SamplingOptions(4, 12, seed=2)
    own, copied = (
        [[rollout.response_tokens for rollout in group] for group in sampler.sample_groups(prompts, draws)]
        for sampler in (InProcessSampler(one, made_tokenizer, (1, 5), 6) for one in (model, float32_copy(model)))
    )
    assert copied == own


@pytest.mark.parametrize(
    ("instructions", "width", "chosen"), [(False, 2**11, True), (False, 64, False), (True, 2**11, False)]
)
def test_which_float32_models_have_a_packed_copy(
    monkeypatch: pytest.MonkeyPatch, instructions: bool, width: int, chosen: bool
) -> None:
    for module in (packed, machine):
        monkeypatch.setattr(module, "multiplies_bfloat16", lambda: instructions)
    layers = nn.Sequential(*[nn.Linear(width, width, bias=False, device="meta") for _ in range(4)])
    layers.add_module("first", nn.Linear(1, 1))  # on a processor, as the policy is
    assert packed.packs_float32(nn.Sequential(layers[-1], *layers[:-1])) == chosen


def test_which_processors_multiply_bfloat16_is_what_torch_says() -> None:
    assert machine.multiplies_bfloat16() == bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
