"""Log-probs of chosen tokens and their gradient by Liger's fused linear cross-entropy (arXiv 2410.10989).

One kernel reads a chunk's logits once where plain operations read and write them five to ten times. It knows neither entropies
nor Σ p², and its forward pass computes the gradient for one scalar loss; so a pass that wants either computes forward by blocks,
and this takes the backward pass, in which every token has its own weight. Needs a GPU, or Triton's interpreter to test it.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from luspo_cli.errors import UsageError
from luspo_cli.policy.model_files import liger_missing

CHUNK = 16
"""Logits of a chunk, in multiples of the hidden states' size: with Liger's own 1 a chunk of a large vocabulary is a few dozen
tokens, for which the whole head is read."""


def check_liger(temperature: float, cap: float | None) -> None:
    """UsageError where Liger is not there, or would compute something else."""
    if reason := liger_missing():
        raise UsageError(reason)
    wanted = "model.kernels.head = liger"
    if not {"token_grad_output", "chunk_mem_const"} <= inspect.signature(_fused()).parameters.keys():
        raise UsageError(f"{wanted} needs a Liger that weights tokens one by one: pip install 'liger-kernel>=0.8.5'")
    if cap is not None and temperature != 1.0:
        raise UsageError(
            f"{wanted} caps logits only at temperature 1, and the model caps them at {cap:g}: set model.kernels.head = blocks"
        )


def fused_logprobs(hidden: Tensor, head: Tensor, targets: Tensor, temperature: float, cap: float | None) -> Tensor:
    """[N] float32 log-probs; arguments as `token_logprobs` has them."""
    found: Tensor = _call(hidden, head, targets, temperature, cap, compute_gradients=False)[0]
    return -found


def fused_gradients(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    temperature: float,
    cap: float | None,
    from_logprobs: Tensor,
    of_head: bool,
) -> tuple[Tensor, Tensor | None]:
    """Gradients to `hidden` and, `of_head`, to `head` (float32), from the loss's gradient to each log-prob [N]."""
    found = _call(
        hidden,
        head,
        targets,
        temperature,
        cap,
        compute_gradients=True,
        weight_requires_grad=of_head,
        token_grad_output=-from_logprobs,
        accum_dtype=torch.float32,
    )
    to_hidden, to_head = found[4], found[5]
    return to_hidden / temperature, to_head


def _call(hidden: Tensor, head: Tensor, targets: Tensor, temperature: float, cap: float | None, **asked: Any) -> Any:
    scaled = hidden if temperature == 1.0 else hidden / temperature
    asked |= {"softcap": cap, "reduction": "none", "chunk_mem_const": CHUNK}
    return _fused()(scaled.contiguous(), head.to(hidden.dtype), targets, **asked)


def _fused() -> Any:
    from liger_kernel.ops.fused_linear_cross_entropy import fused_linear_cross_entropy_forward

    return fused_linear_cross_entropy_forward
