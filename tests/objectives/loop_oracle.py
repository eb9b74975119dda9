"""The objectives once more, written from the equations as loops over Python floats, sharing no code with ours.

A response is a list of tokens without padding; the oracle never sees a mask. Gradients are central differences of the
value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# name: (ratio level, surrogate, weight of a token given (|y|, N, M, L))
FORMULAS = {
    "grpo": ("token", "clip", lambda n, N, M, L: 1 / (N * n)),
    "dr_grpo": ("token", "clip", lambda n, N, M, L: 1 / (N * L)),
    "dapo": ("token", "clip", lambda n, N, M, L: 1 / M),
    "gspo": ("sequence", "clip", lambda n, N, M, L: 1 / (N * n)),
    "luspo": ("sequence", "clip", lambda n, N, M, L: 1 / N),
    "fspo": ("product", "clip", lambda n, N, M, L: 1 / (N * n)),
    "cispo": ("token", "cispo", lambda n, N, M, L: 1 / M),
    "sapo": ("token", "sapo", lambda n, N, M, L: 1 / (N * n)),
    "gmpo": ("token", "gmpo", lambda n, N, M, L: 1 / (N * n)),
    "length_power": ("sequence", "clip", lambda n, N, M, L: 1 / N),
    "dppo": ("token", "dppo", lambda n, N, M, L: 1 / (N * L)),
    "dppo_kl": ("token", "dppo", lambda n, N, M, L: 1 / (N * L)),
    "vespo": ("token", "vespo", lambda n, N, M, L: 1 / M),
    "reinforce": ("token", "reinforce", lambda n, N, M, L: 1 / N),
}
"""Objectives whose weight of a token follows from its row and the batch; those that ask for groups are in group_oracle."""
CLIPS = {
    "grpo": (0.2, 0.2),
    "dr_grpo": (0.2, 0.2),
    "dapo": (0.2, 0.28),
    "gspo": (3e-4, 4e-4),
    "luspo": (2e-3, 2.5e-3),
    "fspo": (0.03, 0.03),
    "cispo": (1.0, 4.0),
    "sapo": (None, None),
    "gmpo": (0.4, 0.4),
    "length_power": (2e-3, 2.5e-3),
    "dppo": (0.15, 0.15),
    "dppo_kl": (0.05, 0.05),
    "vespo": (None, None),
    "reinforce": (None, None),
}
SAPO_TEMPERATURES = (1.0, 1.05)


@dataclass
class Batch:
    """Ragged rows: `new[i][t]`, `old[i][t]` log-probs, `advantages[i]`, `weights[i][t]` rollout weights."""

    new: list[list[float]]
    old: list[list[float]]
    advantages: list[float]
    weights: list[list[float]]


def clipped_value(ratio: float, advantage: float, low: float, high: float) -> float:
    return min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)


def divergence(name: str, new: float, old: float) -> float:
    """Of two coins, this token or any other, in nats for dppo_kl."""
    p, q = math.exp(new), math.exp(old)
    if name == "dppo":
        return abs(p - q)
    return q * math.log(q / p) + (1 - q) * math.log((1 - q + 1e-8) / (max(1 - p, 0.0) + 1e-8))


def too_far(name: str, new: float, old: float, advantage: float, low: float, high: float) -> str:
    """Which bound of dppo has taken the token out: "low", "high" or ""."""
    distance = divergence(name, new, old)
    if advantage > 0 and new > old and distance > high:
        return "high"
    return "low" if advantage < 0 and new < old and distance > low else ""


def sequence_value(name: str, batch: Batch, i: int, t: int, low: float, high: float, frozen: Batch) -> float:
    """The quantity to maximise of token t of row i; `frozen` is the point at which stopped gradients are held."""
    level, surrogate, _ = FORMULAS[name]
    new, old, advantage = batch.new[i], batch.old[i], batch.advantages[i]
    if surrogate == "gmpo":
        total = 0.0
        for a, b in zip(new, old, strict=True):
            step = a - b
            if advantage > 0:
                step = min(step, high)
            elif advantage < 0:
                step = max(step, -low)
            total += step
        return advantage * math.exp(total / len(new))
    if surrogate == "reinforce":
        return advantage * new[t]
    if surrogate == "vespo":
        power, rate = (2.0, 3.0) if advantage >= 0 else (3.0, 2.0)
        product = math.exp(math.fsum(a - b for a, b in zip(frozen.new[i], old, strict=True)))
        return product**power * math.exp(rate * (1 - product)) * advantage * new[t]
    if surrogate == "dppo":
        held = frozen.new[i][t]
        kept = not too_far(name, held, old[t], advantage, low, high)
        return kept * math.exp(held - old[t]) * advantage * new[t]
    if level == "product":
        total, root = math.fsum(a - b for a, b in zip(new, old, strict=True)), math.sqrt(len(new))
        bounded = min(max(total, -low * root), high * root)
        return min(math.exp(total) * advantage, math.exp(bounded) * advantage)
    if level == "sequence":
        ratio = math.exp(math.fsum(a - b for a, b in zip(new, old, strict=True)) / len(new))
    else:
        ratio = math.exp(new[t] - old[t])
    if surrogate == "cispo":
        held = math.exp(frozen.new[i][t] - old[t])
        return min(max(held, 1 - low), 1 + high) * advantage * new[t]
    if surrogate == "sapo":
        tau = SAPO_TEMPERATURES[0] if advantage > 0 else SAPO_TEMPERATURES[1]
        return 4 / tau / (1 + math.exp(-tau * (ratio - 1))) * advantage
    return clipped_value(ratio, advantage, low, high)


def oracle_loss(name: str, batch: Batch, limit: int, frozen: Batch | None = None) -> float:
    low, high = CLIPS[name]
    lengths = [len(row) for row in batch.new]
    sequences, tokens = sum(n > 0 for n in lengths), sum(lengths)
    weight = FORMULAS[name][2]
    terms = []
    for i, n in enumerate(lengths):
        for t in range(n):
            value = sequence_value(name, batch, i, t, low, high, frozen or batch)
            terms.append(-weight(n, sequences, tokens, limit) * batch.weights[i][t] * value)
    return math.fsum(terms)


def oracle_gradient(name: str, batch: Batch, limit: int, step: float = 1e-6) -> list[list[float]]:
    """dL/d log π of every token by central differences; what the objective stops the gradient of is held fixed."""
    gradient = []
    for i, row in enumerate(batch.new):
        gradient.append([])
        for t in range(len(row)):
            values = []
            for sign in (1, -1):
                moved = [list(r) for r in batch.new]
                moved[i][t] += sign * step
                shifted = Batch(moved, batch.old, batch.advantages, batch.weights)
                values.append(oracle_loss(name, shifted, limit, frozen=batch))
            gradient[i].append((values[0] - values[1]) / (2 * step))
    return gradient
