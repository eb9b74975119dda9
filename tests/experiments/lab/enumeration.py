"""Every response that there can be below a limit, for checks against exact expectations."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from luspo_cli.config.lab import resolve_lab
from luspo_cli.experiments.lab.responses import DTYPE, Logits, ResponseModel, Responses


def short_model(*sets: str, objective: str = "luspo") -> ResponseModel:
    """A model whose responses are short and few."""
    return ResponseModel(resolve_lab(objective, sets=["model.length=4", "rollout.max_response_tokens=12", *sets]))


def generators(seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(seeds)]


def shaken(logits: Logits, seed: int = 0) -> Logits:
    """The logits with noise, so that no two of them are equal by symmetry; they take gradients."""
    generator = torch.Generator().manual_seed(seed)
    noisy = [part + 0.3 * torch.randn(part.shape, generator=generator, dtype=DTYPE) for part in logits.tensors()]
    return Logits(*(part.requires_grad_(True) for part in noisy))


def all_responses(model: ResponseModel, seeds: int, prompt_type: int = 0) -> Responses:
    """Every response to a prompt of one type, the same rows for each seed; what the limit cuts is there once."""
    config = model.config.model
    endings = (True, False) if config.ending < 1 else (True,)
    latent = list(
        itertools.product(
            range(model.limit + 1), itertools.product(range(config.answers), repeat=config.answer_tokens), endings
        )
    )
    filler = torch.tensor([row[0] for row in latent], dtype=DTYPE)[:, None]
    fillers = (filler - model.bin_starts).clamp(min=0).minimum(model.bin_widths)
    stop_bin = ((filler >= model.bin_starts).sum(-1) - 1).clamp(min=0)
    found = model.describe(
        torch.full((1, len(latent)), prompt_type),
        fillers[None],
        stop_bin[None],
        torch.tensor([row[1] for row in latent])[None],
        torch.tensor([row[2] for row in latent])[None],
        torch.zeros(1, len(latent), dtype=torch.bool),
    )
    # Tokens behind the limit are not written: of the rows that differ in them alone one is kept.
    unwritten = ~found.mask[..., config.bins :]
    others = torch.cat([found.answers != 0, ~found.ended[..., None]], -1)
    kept = ~(unwritten & others).any(-1)[0]
    return Responses(*(part[:, kept].expand(seeds, *part[:, kept].shape[1:]) for part in found))


def probabilities(model: ResponseModel, logits: Logits, responses: Responses) -> Tensor:
    """Probability of each response [S, B], with gradient."""
    written = torch.where(responses.mask, model.log_probs(logits, responses) * responses.token_counts, 0)
    return written.sum(-1).exp()
