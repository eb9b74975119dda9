"""Log-probs of chosen tokens straight from hidden states, without a [tokens, vocabulary] tensor ever existing whole.

The vocabulary head runs over chunks of tokens; the backward pass computes each chunk's logits again. One 7B-class vocabulary
over a 16k-token micro-batch would be 10 GB of float32 logits, kept for the backward pass; a chunk is about 256 MB.
Softmax and logarithm are float32 whatever the compute type, and the head's gradient adds up in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_LOGITS = 2**26
"""Logits of one chunk: 256 MB in float32."""


def logit_cap(model: Any) -> float | None:
    """The bound c of a model whose logits are c * tanh(logits / c), Gemma's `final_logit_softcapping`; None without one."""
    config = getattr(model, "config", None)
    found: float | None = getattr(config and config.get_text_config(), "final_logit_softcapping", None)
    return found


def head_logits(model: Any, hidden: Tensor) -> Tensor:
    """Logits [..., V] of hidden states [..., width], as the model itself makes them; for few tokens."""
    logits: Tensor = model.lm_head(hidden)
    cap = logit_cap(model)
    return logits if cap is None else (logits / cap).tanh() * cap


def token_logprobs(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    temperature: float,
    with_entropy: bool,
    with_collision: bool = False,
    cap: float | None = None,
) -> tuple[Tensor, ...]:
    """Return log-probs [N] of `targets` and the entropy [N] (nats) at `temperature`; zeros where it is not asked for.

    hidden: [N, width] in the compute type; head: [vocabulary, width]; targets: [N]. Both results are float32 and carry
    gradient to `hidden` and `head`. `with_collision`: a third result, Σ p² over the vocabulary [N], without gradient.
    `cap`: as `logit_cap` has it.
    """
    found: tuple[Tensor, ...] = _TokenLogprobs.apply(
        hidden, head, targets, temperature, with_entropy, with_collision, cap
    )
    return found if with_collision else found[:2]


def _chunks(tokens: int, vocabulary: int) -> list[slice]:
    size = max(1, CHUNK_LOGITS // vocabulary)
    return [slice(start, start + size) for start in range(0, tokens, size)]


def _logits(hidden: Tensor, head: Tensor, temperature: float, cap: float | None) -> Tensor:
    """Float32 logits of a chunk, a private copy that the caller may overwrite."""
    logits = torch.nn.functional.linear(hidden, head).float()
    if cap is not None:
        logits.div_(cap).tanh_().mul_(cap)
    return logits if temperature == 1.0 else logits.div_(temperature)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        targets: Tensor,
        temperature: float,
        with_entropy: bool,
        with_collision: bool,
        cap: float | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        weight = head.to(hidden.dtype)
        logprobs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        entropy, normaliser, collision = (torch.zeros_like(logprobs) for _ in range(3))
        with torch.autocast(hidden.device.type, enabled=False):
            for part in _chunks(len(targets), len(head)):
                logits = _logits(hidden[part], weight, temperature, cap)
                peak = logits.amax(-1, keepdim=True)
                weights = (logits - peak).exp_()
                total = weights.sum(-1)
                normaliser[part] = peak[:, 0] + total.log()
                logprobs[part] = logits.gather(-1, targets[part, None])[:, 0] - normaliser[part]
                if with_entropy:  # log Z - sum(p * logits), as a dot product a row: no further copy of the chunk
                    mean = torch.bmm(weights[:, None], logits[:, :, None])[:, 0, 0] / total
                    entropy[part] = normaliser[part] - mean
                if with_collision:
                    collision[part] = torch.bmm(weights[:, None], weights[:, :, None])[:, 0, 0] / total.square()
        ctx.save_for_backward(hidden, head, targets, normaliser, entropy)
        ctx.temperature, ctx.with_entropy, ctx.cap = temperature, with_entropy, cap
        ctx.mark_non_differentiable(collision)
        return logprobs, entropy, collision

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, head, targets, normaliser, entropy = ctx.saved_tensors
        from_logprobs, from_entropy, _ = gradients
        weight = head.to(hidden.dtype)
        hidden_gradient = torch.empty_like(hidden)
        head_gradient = torch.zeros_like(head, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        entropy_counts = ctx.with_entropy and bool(from_entropy.any())
        with torch.autocast(hidden.device.type, enabled=False):
            for part in _chunks(len(targets), len(head)):
                log_softmax = _logits(hidden[part], weight, ctx.temperature, ctx.cap)
                # The slope of c * tanh(x / c) is 1 - (its value / c)^2.
                slope = None if ctx.cap is None else 1 - (log_softmax * (ctx.temperature / ctx.cap)).square_()
                log_softmax.sub_(normaliser[part, None])
                # d logprob / d logits = onehot - p;  d entropy / d logits = -p (log p + entropy)
                if entropy_counts:
                    probabilities = log_softmax.exp()
                    scale = log_softmax.add_(entropy[part, None]).mul_(from_entropy[part, None])
                    gradient = probabilities.mul_(scale.add_(from_logprobs[part, None])).neg_()
                else:
                    gradient = log_softmax.exp_().mul_(-from_logprobs[part, None])
                gradient.scatter_add_(-1, targets[part, None], from_logprobs[part, None])
                if ctx.temperature != 1.0:
                    gradient.div_(ctx.temperature)
                if slope is not None:
                    gradient.mul_(slope)
                gradient = gradient.to(hidden.dtype)
                torch.mm(gradient, weight, out=hidden_gradient[part])
                if head_gradient is not None:
                    head_gradient += gradient.t().mm(hidden[part])
        return hidden_gradient, None if head_gradient is None else head_gradient.to(head.dtype), *(None,) * 5
