"""Choose the next token from logits with one uniform number a token, so that a response depends only on its own numbers.

Inverse transform sampling instead of one random number a vocabulary entry: the draw of a row does not change when other rows
finish, join or move, and a step's numbers are a function of seed, step and row (docs/engine.md). The cumulative sum is taken in
two levels, blocks first, in float64 over blocks: a flat float32 sum over 150,000 entries would lose the last digits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from luspo_cli.errors import RunError

BLOCK = 128
"""Divides the vocabulary sizes in use (multiples of 128), which spares a padded copy."""


def choose_tokens(
    logits: Tensor, uniform: Tensor, *, temperature: float, top_p: float = 1.0, top_k: int = 0
) -> tuple[Tensor, Tensor]:
    """Return tokens [R] and their log-probs [R] from logits [R, V] and uniform numbers [R] in [0, 1).

    The log-probs are of the distribution at `temperature` over the whole vocabulary, before top_p and top_k: the quantity that
    training compares with. `temperature` 0 takes the most probable token.
    """
    if temperature == 0:
        _require_finite(logits.amax(-1))
        tokens = logits.argmax(-1)
        return tokens, _logprobs(logits.float(), tokens)
    if top_p < 1.0 or top_k:
        scaled = logits.float() / temperature
        tokens, _, _ = _draw(_truncate(scaled, top_p, top_k), uniform)
        return tokens, _logprobs(scaled, tokens)
    # A private float32 copy that exp may overwrite: these passes over the vocabulary are a tenth of a decode step.
    scaled = logits.to(torch.float32, copy=True)
    if temperature != 1.0:
        scaled /= temperature
    tokens, total, peak = _draw(scaled, uniform)
    chosen = logits.gather(-1, tokens[:, None])[:, 0].float() / temperature
    return tokens, chosen - peak - torch.log(total).float()


def _require_finite(peaks: Tensor) -> None:
    """RunError where a row has a NaN logit or none above minus infinity: nothing can be drawn from it."""
    if not math.isfinite(float(peaks.sum(dtype=torch.float64))):  # one that is not leaves no finite sum
        raise RunError(
            "the model's logits are not finite: its weights have diverged or were broken from the start; start a new run with a"
            " lower update.learning_rate, from weights that are whole (an earlier checkpoint's model folder can be model.path)"
        )


def _draw(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw tokens [R]; also the sum [R] of exp(logits - peak) and the peak [R]. Overwrites `logits`."""
    peak = logits.amax(-1)
    _require_finite(peak)
    tokens, total = _inverse_transform(logits.sub_(peak[:, None]).exp_(), uniform)
    return tokens, total, peak


def _logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.gather(-1, tokens[:, None])[:, 0] - torch.logsumexp(logits, -1)


def _inverse_transform(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest index whose cumulative weight exceeds uniform * total; weights [R, V] >= 0, some > 0."""
    rows, vocabulary = weights.shape
    if vocabulary <= BLOCK:  # one sum that ends with the total itself
        upto = weights.double().cumsum(-1)
        return torch.searchsorted(upto, _below(uniform, upto[:, -1])[:, None], right=True)[:, 0], upto[:, -1]
    blocks = -(-vocabulary // BLOCK)
    missing = blocks * BLOCK - vocabulary
    padded = (torch.nn.functional.pad(weights, (0, missing)) if missing else weights).view(rows, blocks, BLOCK)
    upto = padded.sum(-1).double().cumsum(-1)  # [R, blocks]
    total = upto[:, -1]
    target = _below(uniform, total)
    block = torch.searchsorted(upto, target[:, None], right=True)[:, 0].clamp_(max=blocks - 1)
    before = torch.where(block > 0, upto.gather(1, (block - 1).clamp_(min=0)[:, None])[:, 0], 0.0)
    inside = padded[torch.arange(rows, device=weights.device), block].double()  # [R, BLOCK]
    within = inside.cumsum(-1)
    offset = torch.searchsorted(within, (target - before)[:, None], right=True)[:, 0]
    # The block sum (float32) and the sum inside it (float64) may differ in the last digit: then take its last weighted entry.
    last = (inside > 0).long().mul_(torch.arange(1, BLOCK + 1, device=weights.device)).amax(-1) - 1
    return block * BLOCK + torch.minimum(offset, last), total


def _below(uniform: Tensor, total: Tensor) -> Tensor:
    """uniform * total, and below the total where rounding puts the product at it: inside the last entry with weight."""
    return torch.minimum(uniform.double() * total, torch.nextafter(total, torch.zeros_like(total)))


def _truncate(logits: Tensor, top_p: float, top_k: int) -> Tensor:
    """Set logits outside the top_k most probable and outside the nucleus top_p to minus infinity."""
    if top_k:
        least = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        outside = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, order, before >= top_p)
        logits = logits.masked_fill(outside, -torch.inf)
    return logits
