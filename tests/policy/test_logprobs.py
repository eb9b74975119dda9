"""Chunked log-probs and entropies, value and gradient, against a full-vocabulary softmax in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from luspo_cli.policy import logprobs as module
from luspo_cli.policy.logprobs import token_logprobs

TOKENS, WIDTH, VOCABULARY = 13, 6, 29


@pytest.fixture(
    params=[(1, 8192), (3 * VOCABULARY, 8192), (2**26, 8192), (2**26, 8), (24, 8), (1, 1)],
    ids=["one token", "three tokens", "one piece", "four blocks", "four blocks, three tokens", "one logit"],
)
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Logits of a piece; with its block of the vocabulary."""
    logits, block = request.param
    monkeypatch.setattr(module, "CHUNK_LOGITS", logits)
    monkeypatch.setattr(module, "BLOCK", block)
    return int(logits)


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


def test_the_chance_that_two_draws_agree(chunk: int) -> None:
    hidden, head, targets, _, _ = inputs()
    expected = (hidden.double() @ head.double().T / 0.6).softmax(-1).square().sum(-1)
    assert torch.allclose(token_logprobs(hidden, head, targets, 0.6, True, True)[2].double(), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_added_in_place_is_autograds(chunk: int, dtype: torch.dtype) -> None:
    """On top of what is there, which makes the order of sums another one; a bfloat16 product is rounded the same way."""
    hidden, head, targets, on_logprobs, on_entropy = inputs()
    gradients = []
    for in_place in (False, True):
        h, w = hidden.to(dtype).requires_grad_(), head.clone().requires_grad_()
        w.grad = torch.full_like(w, 0.5)
        logprobs, entropy = token_logprobs(h, w, targets, 0.8, True, in_place=in_place)
        before = w.grad.data_ptr()
        (on_logprobs * logprobs + 0.3 * on_entropy * entropy).sum().backward()
        assert w.grad.data_ptr() == before
        gradients.append((h.grad, w.grad))
    (h, w), (h_in_place, w_in_place) = gradients
    assert torch.equal(h, h_in_place)
    assert torch.allclose(w, w_in_place, atol=1e-6)
    assert (w - 0.5).abs().max() > 0.1


def test_memory_does_not_grow_with_tokens_times_vocabulary() -> None:
    """Largest tensor that forward and backward make, beside the head's and the states' gradients: one piece of logits."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                self.numbers = max(self.numbers, result.untyped_storage().nbytes() // 4)
            return result

    found = []
    for tokens, vocabulary in ((1024, 8192), (2048, 8192), (2048, 32768)):
        hidden, head = torch.randn(tokens, 4).requires_grad_(), torch.randn(vocabulary, 4).requires_grad_()
        head.grad = torch.zeros_like(head)
        with Largest() as largest:
            token_logprobs(hidden, head, torch.zeros(tokens, dtype=torch.long), 1.0, True, True, in_place=True)[
                0
            ].sum().backward()
        found.append(largest.numbers)
    assert found == [module.CHUNK_LOGITS] * 3


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
