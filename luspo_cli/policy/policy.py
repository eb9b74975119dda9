"""The policy as one module: rows of tokens in, log-probs of their response tokens out.

Everything that touches weights happens inside `forward`, so that a wrapper (mixed precision, data parallel, sharded) sees one
call. Rows are padded on the right and no mask is passed: under a causal mask a token never sees what follows it, so the amount
of padding cannot change a log-prob.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from luspo_cli.policy.logprobs import token_logprobs
from luspo_cli.policy.packing import PolicyBatch


class Policy(nn.Module):
    """A causal language model read at a fixed temperature."""

    def __init__(self, model: Any, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, batch: PolicyBatch, with_entropy: bool = False) -> tuple[Tensor, Tensor]:
        """Log-probs and, on request, entropies [B, R] (float32, nats) of the batch's response tokens; 0 where masked."""
        positions = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)[None]
        hidden = self.model.model(
            input_ids=batch.tokens, position_ids=positions, use_cache=False, **(batch.image_inputs or {})
        ).last_hidden_state  # [B, W, width]
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
