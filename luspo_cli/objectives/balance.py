"""The balanced clip range: both bounds moved against each other until they cut equally much (ours, experimental).

Advantages add up to 0 in their groups. What a bound cuts leaves a mean advantage behind that no reward gave, and the two
bounds leave opposite ones. The mass of a sequence is |A_i| times the weight of one of its tokens in the gradient (1/|y| under
gspo, 1 under luspo). With the bounds clip_low·e^b and clip_high·e^−b the mass that is cut below falls with b and the mass
that is cut above grows, so there is one crossing. b is found by sorting the whole mini-batch, whatever its order and its
micro-batches.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from luspo_cli.config.objective import ObjectiveConfig
from luspo_cli.objectives.aggregation import BatchSize, pull_on_tokens, token_weights
from luspo_cli.objectives.ratio import clip_position, sequence_ratio
from luspo_cli.objectives.surrogate import Bound

MARGIN = 0.1
"""Greatest distance of b from the points at which a sequence is on a bound: its side must not be a matter of rounding."""
LEAST_GAP = 1e-6
"""Points that are nearer to each other are taken as one."""


def shifted(clip_low: float, clip_high: float, shift: float | torch.Tensor) -> tuple[Bound, Bound]:
    """The distances clip_low·e^b and clip_high·e^−b."""
    if isinstance(shift, float):
        return clip_low * math.exp(shift), clip_high * math.exp(-shift)
    return clip_low * shift.exp(), clip_high * (-shift).exp()


class CutPoints(NamedTuple):
    """What a sequence contributes to the choice of b, [..., B], without gradient."""

    point: torch.Tensor
    """b at which the sequence is on its bound; +inf where its ratio did not move in its advantage's direction."""
    mass: torch.Tensor
    """|A_i| times the weight of one token, times the rows that it stands for; 0 where no bound can cut it."""
    below: torch.Tensor
    """Whether its bound is the lower one, which cuts where b is under the point; the upper one cuts where b is over it."""


def cut_points(
    config: ObjectiveConfig,
    log_ratio: torch.Tensor,
    amounts: torch.Tensor,
    advantages: torch.Tensor,
    row_counts: torch.Tensor | None = None,
    divisors: torch.Tensor | None = None,
) -> CutPoints:
    """The points of sequences with token log-ratios [..., B, T] and advantages [..., B]; `divisors` of `BatchSize`."""
    low, high = config.clip_low or 0.0, config.clip_high or 0.0
    product = config.ratio == "sequence-product"
    if config.clips_log_ratio:
        distance = clip_position(log_ratio, amounts, config.clip_on or "sum", product).position
    else:
        distance = sequence_ratio(log_ratio.detach(), amounts, product) - 1
    distance, advantages = distance[..., 0].double(), advantages.detach().double()
    below, above = (distance < 0) & (advantages < 0), (distance > 0) & (advantages > 0)
    size = torch.where(below | above, distance.abs(), 1.0)
    point = torch.where(below, (size / low).log(), (high / size).log())
    # Masses are compared with each other only, so that the counts of the batch do not matter.
    weights = token_weights(amounts, config, BatchSize(1.0, 1.0, 1, 1.0, divisors), torch.float64)
    mass = torch.where(below | above, advantages.abs() * pull_on_tokens(weights, amounts, product), 0.0)
    if row_counts is not None:
        mass = mass * row_counts
    return CutPoints(point.masked_fill(mass == 0, math.inf), mass, below)


def balanced_shift(points: CutPoints) -> torch.Tensor:
    """b [...] of each batch: the one nearest 0 for which the masses cut below and above differ least; float64.

    0 where the configured bounds are among the best. Between two points nothing changes: of the equal b there it is the nearest
    to 0 that keeps its distance from both.
    """
    order = points.point.argsort(dim=-1)
    ends, mass = points.point.gather(-1, order), points.mass.gather(-1, order)
    edge = ends.new_full((*ends.shape[:-1], 1), math.inf)
    starts, stops = torch.cat([-edge, ends], dim=-1), torch.cat([ends, edge], dim=-1)
    cut_below = (points.mass * points.below).sum(dim=-1, keepdim=True)
    # Each point that b passes takes its mass from below or adds it above: the difference falls by it in either case.
    difference = cut_below - torch.cat([torch.zeros_like(cut_below), mass.cumsum(dim=-1)], dim=-1)
    gap = (stops - starts).nan_to_num(nan=0.0)  # between two infinite ends lies nothing
    margin = (gap / 2).clamp(max=MARGIN)
    nearest = torch.maximum(torch.minimum(torch.zeros_like(starts), stops - margin), starts + margin)
    nearest = torch.where((starts < 0) & (stops > 0), 0.0, nearest)
    size = torch.where(gap > LEAST_GAP, difference.abs(), math.inf)
    best = size.amin(dim=-1, keepdim=True)
    as_good = size <= best + 1e-9 * points.mass.sum(dim=-1, keepdim=True)
    place = torch.where(as_good, nearest.abs(), math.inf).argmin(dim=-1, keepdim=True)
    return nearest.gather(-1, place)[..., 0]
