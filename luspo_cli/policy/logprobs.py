"""Log-probs of chosen tokens straight from hidden states, without a [tokens, vocabulary] tensor ever existing whole.

The vocabulary head runs over blocks of the vocabulary and in them over chunks of tokens; normalisers, entropies and the chosen
logits are carried from block to block, and the backward pass computes each piece's logits again. One 7B-class vocabulary over a
16k-token micro-batch would be 10 GB of float32 logits, kept for the backward pass; a piece is 32 MB. Block by block there is no
whole copy of the head in the compute type either, and a block's gradient is written once, where it stays. Softmax and logarithm
are float32 whatever the compute type, and the head's gradient adds up in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from luspo_cli.policy.liger_head import fused_gradients, fused_logprobs

BLOCK = 8192
"""Tokens of the vocabulary in one block: fixed, so that a row's numbers do not depend on the rows beside it."""
CHUNK_LOGITS = 2**23
"""Logits of one piece: 32 MB in float32."""


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
    in_place: bool = False,
    kernel: str = "blocks",
) -> tuple[Tensor, ...]:
    """Return log-probs [N] of `targets` and the entropy [N] (nats) at `temperature`; zeros where it is not asked for.

    hidden: [N, width] in the compute type; head: [vocabulary, width]; targets: [N]. Both results are float32 and carry
    gradient to `hidden` and `head`. `with_collision`: a third result, Σ p² over the vocabulary [N], without gradient.
    `cap`: as `logit_cap` has it.
    `in_place`: a head that has a float32 `.grad` gets its gradient added there block by block, past autograd, which would hold
    a second one: for a policy that nothing wraps, since hooks on the head do not see it.
    `kernel`: `liger` computes by liger_head.py what that can: the forward pass where log-probs alone are asked for, the backward
    pass where the entropy has no part in the loss.
    """
    found: tuple[Tensor, ...] = _TokenLogprobs.apply(
        hidden, head, targets, temperature, with_entropy, with_collision, cap, in_place, kernel
    )
    return found if with_collision else found[:2]


def _blocks(vocabulary: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, vocabulary)) for start in range(0, vocabulary, BLOCK))


def _chunks(tokens: int, block: slice) -> Iterator[slice]:
    size = max(1, CHUNK_LOGITS // (block.stop - block.start))
    return (slice(start, start + size) for start in range(0, tokens, size))


def _logits(hidden: Tensor, head: Tensor, temperature: float, cap: float | None) -> Tensor:
    """Float32 logits of a piece, a private copy that the caller may overwrite."""
    logits = torch.nn.functional.linear(hidden, head).float()
    if cap is not None:
        logits.div_(cap).tanh_().mul_(cap)
    return logits if temperature == 1.0 else logits.div_(temperature)


def _in_block(targets: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """[n]: which targets a block holds, and [n, 1] where; any place for the others."""
    inside = (targets >= block.start) & (targets < block.stop)
    return inside, (targets - block.start).clamp(0, block.stop - block.start - 1)[:, None]


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
        in_place: bool,
        kernel: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.temperature, ctx.with_entropy, ctx.cap, ctx.in_place = temperature, with_entropy, cap, in_place
        ctx.kernel = kernel
        chosen, total, moment, collision = torch.zeros(4, len(targets), dtype=torch.float32, device=hidden.device)
        if kernel == "liger" and not (with_entropy or with_collision):
            ctx.save_for_backward(hidden, head, targets, total, total)
            ctx.mark_non_differentiable(collision)
            with torch.autocast(hidden.device.type, enabled=False):
                return fused_logprobs(hidden, head, targets, temperature, cap), moment, collision
        peak = torch.full_like(total, -torch.inf)
        with torch.autocast(hidden.device.type, enabled=False):
            for block in _blocks(len(head)):
                weight = head[block].to(hidden.dtype)
                for part in _chunks(len(targets), block):
                    logits = _logits(hidden[part], weight, temperature, cap)
                    inside, place = _in_block(targets[part], block)
                    chosen[part] = torch.where(inside, logits.gather(-1, place)[:, 0], chosen[part])
                    highest = torch.maximum(peak[part], logits.amax(-1))
                    weights = (logits - highest[:, None]).exp_()
                    earlier = (peak[part] - highest).exp_()  # what the sums so far are worth beside the new peak
                    peak[part] = highest
                    total[part] = total[part] * earlier + weights.sum(-1)
                    if with_entropy:  # of log Z - sum(p * logits), as a dot product a row: no further copy of the piece
                        mean = torch.bmm(weights[:, None], logits[:, :, None])[:, 0, 0]
                        moment[part] = moment[part] * earlier + mean
                    if with_collision:
                        squares = torch.bmm(weights[:, None], weights[:, :, None])[:, 0, 0]
                        collision[part] = collision[part] * earlier.square() + squares
        normaliser = peak + total.log()
        entropy = normaliser - moment / total if with_entropy else torch.zeros_like(normaliser)
        ctx.save_for_backward(hidden, head, targets, normaliser, entropy)
        collision /= total.square()
        ctx.mark_non_differentiable(collision)
        return chosen - normaliser, entropy, collision

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, head, targets, normaliser, entropy = ctx.saved_tensors
        from_logprobs, from_entropy, _ = gradients
        entropy_counts = ctx.with_entropy and bool(from_entropy.any())
        own = ctx.in_place and head.grad is not None and head.grad.dtype == torch.float32
        if ctx.kernel == "liger" and not entropy_counts:
            asked = ctx.temperature, ctx.cap, from_logprobs, ctx.needs_input_grad[1]
            with torch.autocast(hidden.device.type, enabled=False):
                to_hidden, to_head = fused_gradients(hidden, head, targets, *asked)
            if own and to_head is not None:
                head.grad += to_head
                to_head = None
            return to_hidden, None if to_head is None else to_head.to(head.dtype), *(None,) * 7
        # One type for the sums over blocks, which each block's product is rounded into once.
        hidden_gradient = torch.zeros_like(hidden, dtype=torch.float32 if hidden.dtype == torch.bfloat16 else None)
        head_gradient = None
        if ctx.needs_input_grad[1]:
            head_gradient = head.grad if own else torch.zeros_like(head, dtype=torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            for block in _blocks(len(head)):
                weight = head[block].to(hidden.dtype)
                for part in _chunks(len(targets), block):
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
                    inside, place = _in_block(targets[part], block)
                    gradient.scatter_add_(-1, place, (from_logprobs[part] * inside)[:, None])
                    if ctx.temperature != 1.0:
                        gradient.div_(ctx.temperature)
                    if slope is not None:
                        gradient.mul_(slope)
                    gradient = gradient.to(hidden.dtype)
                    hidden_gradient[part] += gradient.mm(weight)
                    if head_gradient is not None:
                        head_gradient[block] += gradient.t().mm(hidden[part])
        to_head = None if own or head_gradient is None else head_gradient.to(head.dtype)
        return hidden_gradient.to(hidden.dtype), to_head, *(None,) * 7
