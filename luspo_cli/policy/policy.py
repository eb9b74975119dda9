"""The policy as one module: rows of tokens in, log-probs of their response tokens out.

Everything that touches weights happens inside `forward`, so that a wrapper (mixed precision, data parallel, sharded) sees one
call. Rows are padded on the right and no mask is passed: under a causal mask a token never sees what follows it, so the amount
of padding cannot change a log-prob. Log-probs are over the whole vocabulary, also of a vision model, whose image tokens the
sampler never draws (docs/vision.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from luspo_cli.policy.images import hidden_states, rotary_positions
from luspo_cli.policy.logprobs import token_logprobs
from luspo_cli.policy.packing import PolicyBatch


class Policy(nn.Module):
    """A causal language model read at a fixed temperature."""

    def __init__(self, model: Any, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature

    def train(self, mode: bool = True) -> Policy:
        """Passes with gradients, in which nothing is random all the same.

        Old and new log-probs are compared, and responses are sampled from this very model, so dropout, layer drop and the noise
        of routers would stand between them. Every module therefore stays in evaluation mode. Only those that recompute their
        activations are told that they are trained, since transformers looks for that; their own dropout is set to 0.
        """
        super().train(False)
        self.training = mode
        for module in self.model.modules():
            if mode and getattr(module, "gradient_checkpointing", False):
                module.training = True
                for name, value in vars(module).items():
                    if isinstance(value, float) and ("drop" in name or "jitter" in name):
                        setattr(module, name, 0.0)
        return self

    def forward(self, batch: PolicyBatch, with_entropy: bool = False) -> tuple[Tensor, Tensor]:
        """Log-probs and, on request, entropies [B, R] (float32, nats) of the batch's response tokens; 0 where masked."""
        images = batch.images
        placeholder = getattr(self.model.config, "image_token_id", None)
        if images is None and placeholder is not None and bool((batch.tokens == placeholder).any()):
            raise ValueError("rows hold image tokens and their image inputs were not handed in")
        positions = rotary_positions(self.model, batch.tokens, images)
        hidden = hidden_states(self.model, batch.tokens, positions, images, use_cache=False)  # [B, W, width]
        mask = batch.response_mask
        rows, columns = mask.nonzero(as_tuple=True)  # [N] response tokens, row by row
        # The token at position p is predicted by the hidden state at p - 1.
        at = batch.prompt_lengths[rows] + columns - 1
        head = self.model.lm_head.weight
        compute_dtype = torch.get_autocast_dtype(hidden.device.type) if _autocast(hidden) else hidden.dtype
        targets = batch.tokens[rows, at + 1]
        states = hidden[rows, at].to(compute_dtype)
        logprobs, entropy = token_logprobs(states, head, targets, self.temperature, with_entropy)
        flat = rows * mask.shape[1] + columns
        shape = (mask.numel(),)
        return (
            torch.zeros(shape, device=hidden.device).scatter(0, flat, logprobs).view(mask.shape),
            torch.zeros(shape, device=hidden.device).scatter(0, flat, entropy).view(mask.shape),
        )


def _autocast(tensor: Tensor) -> bool:
    return torch.is_autocast_enabled(tensor.device.type)
