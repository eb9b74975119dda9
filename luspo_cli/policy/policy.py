"""The policy as one module: rows of tokens in, log-probs of their response tokens out.

Everything that touches weights happens inside `forward`, so that a wrapper (mixed precision, data parallel, sharded) sees one
call. Rows are computed end to end, each prompt once (joined_rows.py), or padded on the right where one of them has an image. No
mask is passed: under a causal mask a token never sees what follows it, so the amount of padding cannot change a log-prob.
Log-probs are over the whole vocabulary, also of a vision model, whose image tokens the sampler never draws (docs/vision.md).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from luspo_cli.config.kernels import KernelsConfig
from luspo_cli.policy.images import hidden_states, rotary_positions
from luspo_cli.policy.lean_layers import can_be_lean, lean_layers
from luspo_cli.policy.logprobs import logit_cap, token_logprobs
from luspo_cli.policy.packing import PolicyBatch
from luspo_cli.policy.ragged_attention import ragged_rows
from luspo_cli.policy.routing import Replay, Routed, RoutingAsked, read_routers, routers, summed_probabilities, taken

PLAIN = KernelsConfig()


class Policy(nn.Module):
    """A causal language model read at a fixed temperature."""

    def __init__(self, model: Any, temperature: float, kernels: KernelsConfig = PLAIN) -> None:
        """`kernels`: that `kernels.check_kernels` takes for this model."""
        super().__init__()
        self.model = model
        self.kernels = kernels
        self.temperature = temperature
        self.routers = len(routers(model))
        """How many layers have a router; 0 in a dense model."""
        if self.routers:
            Replay(model)
        self._joins = True
        self.wrapped = True
        """Whether gradients may be looked for by hooks (DDP, FSDP). Where not, the head's is added where it stays, and layers
        keep less for the backward pass (lean_layers.py)."""

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

    def forward(
        self,
        batch: PolicyBatch,
        with_entropy: bool = False,
        with_collision: bool = False,
        routing: RoutingAsked | None = None,
    ) -> tuple[Any, ...]:
        """Log-probs and, on request, entropies [B, R] (float32, nats) of the batch's response tokens; 0 where masked.

        `with_collision`: also Σ p² [B, R], the chance that two draws of a token are the same, without gradient.
        `routing`, of a model of experts: also what its routers did, a `Routed`, as the last of the results.
        """
        images = batch.images
        placeholder = getattr(self.model.config, "image_token_id", None)
        if images is None and placeholder is not None and bool((batch.tokens == placeholder).any()):
            raise ValueError("rows hold image tokens and their image inputs were not handed in")
        noting: AbstractContextManager[Any] = read_routers(self.model) if routing else nullcontext()
        lean = not self.wrapped and torch.is_grad_enabled() and _autocast(batch.tokens) and can_be_lean(self.model)
        keeping: AbstractContextManager[None] = lean_layers(self.model) if lean else nullcontext()
        with noting as routed, keeping:
            hidden = self._hidden(batch, routing.experts if routing else None)  # [places or joined tokens, width]
        mask = batch.response_mask
        rows, columns = mask.nonzero(as_tuple=True)  # [N] response tokens, row by row
        # The token at position p is predicted by the hidden state at p - 1.
        at = batch.prompt_lengths[rows] + columns - 1
        head = self.model.lm_head.weight
        compute_dtype = torch.get_autocast_dtype(hidden.device.type) if _autocast(hidden) else hidden.dtype
        targets = batch.tokens[rows, at + 1]
        read = rows * batch.tokens.shape[1] + at
        if self._joins and batch.joined is not None:
            read = batch.joined.places.view(-1)[read]
        states = hidden.index_select(0, read).to(compute_dtype)
        cap, in_place = logit_cap(self.model), not self.wrapped
        asked = with_entropy, with_collision, cap, in_place, self.kernels.head
        found = token_logprobs(states, head, targets, self.temperature, *asked)
        flat = rows * mask.shape[1] + columns
        shape = (mask.numel(),)
        results: tuple[Any, ...] = tuple(
            torch.zeros(shape, device=hidden.device).scatter(0, flat, value).view(mask.shape) for value in found
        )
        if routing is None:
            return results
        probabilities = summed_probabilities(routed, read) if routing.with_probabilities else None
        return *results, Routed(taken(routed), read, probabilities)

    def _hidden(self, batch: PolicyBatch, experts: Tensor | None = None) -> Tensor:
        """The last hidden states, of joined rows [N, width] where they can be joined, of padded ones [B * W, width] otherwise."""
        model, tokens, images, joined = self.model, batch.tokens, batch.images, batch.joined
        given = {} if experts is None else {"experts": experts}
        positions = rotary_positions(model, tokens, images)
        if self._joins and joined is not None:
            own = tokens.view(-1)[joined.tokens][None]
            if self.kernels.attention == "varlen":
                joined.ragged = ragged_rows(joined, batch.prompt_lengths + batch.response_mask.sum(1))
            columns = positions[:, joined.tokens % tokens.shape[1]]
            hidden = hidden_states(model, own, columns, None, use_cache=False, joined_rows=joined, **given)
            # A model may keep what it does not know from its layers: all its rows would be one.
            self._joins = joined.reached_attention
            if self._joins:
                return hidden[0]
        return hidden_states(model, tokens, positions, images, use_cache=False, **given).flatten(0, 1)


def _autocast(tensor: Tensor) -> bool:
    return torch.is_autocast_enabled(tensor.device.type)
