"""Chunked log-probs and entropies, value and gradient, against a full-vocabulary softmax in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from luspo_cli.policy import logprobs as module
from luspo_cli.policy.logprobs import token_logprobs

TOKENS, WIDTH, VOCABULARY = 13, 6, 29


@pytest.fixture(params=[1, 3 * VOCABULARY, 2**26], ids=["one token a chunk", "three tokens a chunk", "one chunk"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(module, "CHUNK_LOGITS", request.param)
    return int(request.param)


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """hidden, head, targets, and the weights of the two results in the loss."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator)
    head = torch.randn(VOCABULARY, WIDTH, generator=generator)
    targets = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    return hidden, head, targets, torch.randn(TOKENS, generator=generator), torch.randn(TOKENS, generator=generator)


def oracle(
    hidden: Tensor, head: Tensor, targets: Tensor, temperature: float, cap: float | None = None
) -> tuple[Tensor, Tensor]:
    logits = hidden.double() @ head.double().T
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    log_softmax = (logits / temperature).log_softmax(-1)
    return log_softmax.gather(1, targets[:, None])[:, 0], -(log_softmax.exp() * log_softmax).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
@pytest.mark.parametrize("entropy_weight", [0.0, 0.4])
@pytest.mark.parametrize("cap", [None, 1.5])
def test_value_and_gradient(chunk: int, temperature: float, entropy_weight: float, cap: float | None) -> None:
    hidden, head, targets, on_logprobs, on_entropy = inputs()
    results = []
    for function in (
        lambda h, w, t, temp: oracle(h, w, t, temp, cap),
        lambda h, w, t, temp: token_logprobs(h, w, t, temp, True, cap=cap),
    ):
        h, w = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        logprobs, entropy = function(h, w, targets, temperature)
        loss = (on_logprobs * logprobs).sum() + entropy_weight * (on_entropy * entropy).sum()
        results.append((logprobs, entropy, *torch.autograd.grad(loss, (h, w))))
    for expected, found in zip(*results, strict=True):
        assert torch.allclose(found.double(), expected.double(), atol=3e-6)


def test_entropy_alone_has_a_gradient(chunk: int) -> None:
    hidden, head, targets, _, on_entropy = inputs()
    h, expected_h = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    (token_logprobs(h, head, targets, 1.0, True)[1] * on_entropy).sum().backward()
    (oracle(expected_h, head, targets, 1.0)[1] * on_entropy).sum().backward()
    assert h.grad is not None
    assert expected_h.grad is not None
    assert torch.allclose(h.grad, expected_h.grad, atol=3e-6)
    assert h.grad.abs().max() > 0.01


def test_entropy_by_hand() -> None:
    """Four equal logits: log 4 nats; a certain token: 0."""
    head = torch.tensor([[0.0, 60.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    logprobs, entropy = token_logprobs(torch.eye(2), head, torch.tensor([2, 0]), 1.0, True)
    assert entropy.tolist() == pytest.approx([1.3862944, 0.0], abs=1e-6)
    assert logprobs.tolist() == pytest.approx([-1.3862944, 0.0], abs=1e-6)


def test_entropy_is_zero_where_it_is_not_asked_for() -> None:
    hidden, head, targets, _, _ = inputs()
    assert token_logprobs(hidden, head, targets, 1.0, False)[1].tolist() == [0.0] * TOKENS


def test_a_frozen_head_gets_no_gradient(chunk: int) -> None:
    hidden, head, targets, on_logprobs, _ = inputs()
    h = hidden.clone().requires_grad_()
    (token_logprobs(h, head, targets, 1.0, False)[0] * on_logprobs).sum().backward()
    assert head.grad is None
    assert h.grad is not None


def test_large_logits_do_not_overflow() -> None:
    hidden, head = torch.tensor([[1000.0]]), torch.tensor([[1.0], [0.99], [-1.0]])
    logprobs, entropy = token_logprobs(hidden, head, torch.tensor([1]), 1.0, True)
    assert logprobs.item() == pytest.approx(-10.0000454, abs=1e-4)
    assert entropy.item() == pytest.approx(4.99e-4, abs=1e-4)


def test_bfloat16_states_are_summed_in_float32() -> None:
    """Log Z of 4096 equal logits: a bfloat16 sum would stop growing at 256."""
    hidden = torch.zeros(2, 4, dtype=torch.bfloat16)
    logprobs, entropy = token_logprobs(hidden, torch.ones(4096, 4), torch.tensor([0, 7]), 1.0, True)
    assert logprobs.dtype == torch.float32
    assert logprobs.tolist() == pytest.approx([-8.3177662] * 2, abs=1e-5)
    assert entropy.tolist() == pytest.approx([8.3177662] * 2, abs=1e-5)
