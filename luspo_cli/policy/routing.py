"""What the routers of a model of experts choose: read in a pass, and given to it from elsewhere (router replay).

A router chooses the `top_k` most probable experts of each token, which is no smooth function of the weights: after an update a
token may go through other experts, and its log-prob jumps. Replay fixes the experts of a pass and leaves the rest as it is: what
they weigh are the router's own probabilities of the given experts, so the router is trained through them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from luspo_cli.policy.experts import is_experts
from luspo_cli.policy.joined_rows import JoinedRows
from luspo_cli.policy.supported import EXPERT_MODELS
from luspo_cli.records import Rollout

OWN = -1
"""In given experts: the router's own choice."""
STORED = np.int16
"""In which a rollout's experts are held."""


@dataclass(frozen=True, slots=True)
class RoutingAsked:
    """What a pass is told about its routers."""

    experts: Tensor | None = None
    """[L, N, k]: those that its tokens are given, OWN where a router chooses; None: the routers choose."""
    with_probabilities: bool = False


class Routed(NamedTuple):
    """What the routers made of the tokens of one pass."""

    chosen: Tensor
    """[L, N, k] int16: the experts that each of L routers ranked first for each token, before any replay."""
    read: Tensor
    """[M]: the token behind each response token's log-prob, row by row."""
    probabilities: Tensor | None
    """[L, E] with gradient: each expert's probability, summed over `read`; None where it was not asked for."""


def routers(model: Any) -> list[Any]:
    """The routers of a model's layers, first to last; none of a type that is not among `EXPERT_MODELS`."""
    if getattr(model.config, "model_type", None) not in EXPERT_MODELS:
        return []
    return [layer.mlp.gate for layer in model.model.layers if is_experts(getattr(layer.mlp, "experts", layer))]


@contextmanager
def read_routers(model: Any) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Within this block every call of a router appends its logits [N, E] and its choice [N, k], int64, to the list."""
    found: list[tuple[Tensor, Tensor]] = []

    def note(_router: Any, _inputs: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
        found.append((output[0], output[2]))

    # Before a replay, which changes the output.
    hooks = [router.register_forward_hook(note, prepend=True) for router in routers(model)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def taken(found: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The choices [L, N, k], int16, of one pass that `read_routers` noted; empties the list."""
    chosen = torch.stack([own for _, own in found]).to(torch.int16)
    found.clear()
    return chosen


def summed_probabilities(found: Sequence[tuple[Tensor, Tensor]], read: Tensor) -> Tensor:
    """[L, E]: the probability of each expert of each router, summed over the tokens `read`."""
    return torch.stack([logits.index_select(0, read).float().softmax(-1).sum(0) for logits, _ in found])


class Replay:
    """Makes the layers of a model read `experts` [L, N, k] among their arguments, and their routers choose those.

    It is an argument and no state of its own, so that a layer which recomputes its activations reads the same again.
    """

    def __init__(self, model: Any) -> None:
        self._given: dict[int, Tensor | None] = {}
        layers = [layer for layer in model.model.layers if hasattr(layer.mlp, "gate")]
        for place, (layer, router) in enumerate(zip(layers, routers(model), strict=True)):
            layer.register_forward_pre_hook(partial(self._take, place), with_kwargs=True)
            router.register_forward_hook(partial(self._choose, place))

    def _take(self, place: int, _layer: nn.Module, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        experts = named.pop("experts", None)
        self._given[place] = None if experts is None else experts[place]
        return arguments, named

    def _choose(self, place: int, router: Any, _inputs: Any, output: tuple[Tensor, Tensor, Tensor]) -> Any:
        given = self._given.get(place)
        if given is None:
            return None
        logits, _, own = output
        chosen = torch.where(given == OWN, own, given.long())
        weights = logits.softmax(-1, dtype=torch.float).gather(-1, chosen)
        if router.norm_topk_prob:
            weights = weights / weights.sum(-1, keepdim=True)
        return logits, weights.to(logits.dtype), chosen


def sampled_experts(
    rollouts: Sequence[Rollout], joined: JoinedRows, width: int, shape: tuple[int, int], device: torch.device | str
) -> Tensor | None:
    """[L, N, k]: the experts that each joined token met while its row was sampled, OWN where it was not fed (the last one).

    `width`: columns of the padded rows, `shape`: routers and experts a token. None where a rollout came without.
    """
    padded = np.full((len(rollouts), width, *shape), OWN, dtype=STORED)
    for own, rollout in zip(padded, rollouts, strict=True):
        fed = len(rollout.prompt_tokens) + rollout.response_length - 1
        if rollout.response_length and not rollout.experts:
            return None
        if rollout.experts:
            own[:fed] = np.frombuffer(rollout.experts, dtype=STORED).reshape(fed, *shape)
    flat = torch.from_numpy(padded.reshape(-1, *shape)).to(device)
    return flat[joined.tokens].transpose(0, 1)


def changed_experts(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Of choices [L, M, k]: routers whose set of experts differs [M], and experts of `one` that are not among `other`'s [M]."""
    gone = (~(one[..., :, None] == other[..., None, :]).any(-1)).sum(-1)
    return (gone > 0).sum(0), gone.sum(0)


def load(chosen: Tensor, experts: int) -> Tensor:
    """[L, E]: how often each expert was chosen, of choices [L, M, k]."""
    return torch.stack([torch.bincount(own.reshape(-1).long(), minlength=experts) for own in chosen])


def as_stored(chosen: np.ndarray) -> bytes:
    """Choices [tokens, L, k] as a rollout holds them."""
    return np.ascontiguousarray(chosen, dtype=STORED).tobytes()
