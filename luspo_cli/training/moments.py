"""AdamW with moments of fewer bytes: bfloat16 (4 bytes a weight for both), or 8 bits in blocks (2.03), instead of float32's 8.

The step is torch's own fused AdamW. A chunk of moments is read into float32, stepped and written back, so that float32 moments
of one chunk alone exist. What is written back is rounded up or down in proportion to what is cut off. Rounded to the nearest
number a mean with decay 0.999 would stand still, since it moves by less than half the distance of two bfloat16 numbers, and
only ever grow, where a large gradient comes. The number that decides is no random one: it is a Weyl sequence of place and step,
whose values over steps lie more evenly than draws do, is the same on every device and needs no state, so that a resumed run has
the same bits.

The 8-bit numbers are those of Dettmers et al. (arXiv 2110.02861): 256 fixed values between -1 and 1, or 0 and 1, denser towards
0, times the largest absolute value of each block of 256. As there, tensors below 4,096 numbers keep float32 moments.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.adamw import adamw

CHUNK = 2**20
"""Weights that are stepped at once: a multiple of the dither's period and of a block."""
BLOCK = 256
SMALLEST = 4096
"""Tensors with fewer numbers keep float32 moments instead of 8-bit ones."""
_PERIOD = 2**16
_STRIDES = {"exp_avg": 40503, "exp_avg_sq": 49471}
"""Odd, and their shares of the period far from simple fractions: the golden ratio and the plastic number's."""


class SmallMomentsAdamW(torch.optim.Optimizer):
    """AdamW whose moments are `bfloat16` or `8bit`; a weight's state is `step`, both moments and, in 8 bits, their `_scale`s."""

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], moments: Literal["bfloat16", "8bit"]
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": 1e-8})
        self.moments = moments

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state.update(self._new_state(weight))
                state["step"] += 1
                self._step_one(weight, state, group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take every tensor as it is: torch's own would turn them into the weights' type."""
        super().load_state_dict({**state_dict, "state": {}})
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for index, values in state_dict["state"].items():
            weight = weights[int(index)]
            self.state[weight] = {
                key: value.to("cpu" if key == "step" else weight.device) for key, value in values.items()
            }

    def _new_state(self, weight: Tensor) -> dict[str, Tensor]:
        state = {"step": torch.zeros(())}
        for name in _STRIDES:
            if self.moments == "8bit" and weight.numel() >= SMALLEST:
                blocks = -(-weight.numel() // BLOCK)
                zero = int((_values(name == "exp_avg") == 0).nonzero())
                state[name] = torch.full_like(weight, zero, dtype=torch.uint8)
                state[f"{name}_scale"] = torch.zeros(blocks, device=weight.device)
            else:
                state[name] = torch.zeros_like(
                    weight, dtype=torch.float32 if self.moments == "8bit" else torch.bfloat16
                )
        return state

    def _step_one(self, weight: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        step, flat_gradient = int(state["step"]), weight.grad.reshape(-1)  # type: ignore[union-attr]
        for start in range(0, weight.numel(), CHUNK):
            part = slice(start, min(start + CHUNK, weight.numel()))
            scratch = [_read(state, name, part) for name in _STRIDES]
            adamw(
                [weight.view(-1)[part]],
                [flat_gradient[part]],
                [scratch[0]],
                [scratch[1]],
                [],
                [torch.tensor(step - 1.0, device=weight.device)],  # counted up inside
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            for name, numbers in zip(_STRIDES, scratch, strict=True):
                _write(state, name, part, numbers, step)


def _read(state: dict[str, Tensor], name: str, part: slice) -> Tensor:
    """A part of a moment in float32; a view where it is stored so."""
    stored = state[name].view(-1)[part]
    if stored.dtype != torch.uint8:
        return stored.float()
    numbers = _padded(_values(name == "exp_avg", stored.device)[stored.int()])
    return (numbers.view(-1, BLOCK) * _scales(state, name, part)[:, None]).view(-1)[: len(stored)]


def _write(state: dict[str, Tensor], name: str, part: slice, numbers: Tensor, step: int) -> None:
    """Store a part of a moment, rounded where it is stored in fewer bits; `numbers` are used up."""
    stored = state[name].view(-1)[part]
    if stored.dtype == torch.float32:
        return
    dither = (_places(numbers.device)[: len(numbers)] + step * _STRIDES[name]) % _PERIOD
    if stored.dtype == torch.bfloat16:
        # A bfloat16 number is the first half of a float32 one; what the second half adds to reaches it in proportion.
        bits = numbers.view(torch.int32).add_(dither).bitwise_and_(-_PERIOD)
        stored.copy_(bits.view(torch.float32))
        return
    values = _values(name == "exp_avg", numbers.device)
    blocks = _padded(numbers).view(-1, BLOCK)
    scales = blocks.abs().amax(-1)
    _scales(state, name, part).copy_(scales)
    shares = (blocks / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).view(-1)[: len(numbers)]
    below = (torch.bucketize(shares, values, right=True, out_int32=True) - 1).clamp_(0, len(values) - 2)
    lower, upper = values[below], values[below + 1]
    stored.copy_(below + ((shares - lower) / (upper - lower) * _PERIOD > dither))


def _scales(state: dict[str, Tensor], name: str, part: slice) -> Tensor:
    return state[f"{name}_scale"][part.start // BLOCK : -(-part.stop // BLOCK)]


def _padded(numbers: Tensor) -> Tensor:
    """With zeros up to whole blocks."""
    return torch.nn.functional.pad(numbers, (0, -len(numbers) % BLOCK))


@cache
def _places(device: torch.device) -> Tensor:
    """[CHUNK] int32: what a chunk's place adds to the dither, from 0 to `_PERIOD` - 1."""
    return (torch.arange(CHUNK, device=device) * _STRIDES["exp_avg"] % _PERIOD).int()


@cache
def _values(signed: bool, device: torch.device | None = None) -> Tensor:
    """The 256 numbers that 8 bits stand for, in order: 0, 1, and in each of seven decades twice as many as in the one below.

    They are the middles of equal parts of a decade; signed ones are half as many for each sign.
    """
    values = [torch.tensor([0.0, 1.0], dtype=torch.float64)]
    for decade in range(7):
        parts = 2 ** (6 - decade) * (1 if signed else 2)
        middles = (0.1 + 0.9 * (torch.arange(parts, dtype=torch.float64) + 0.5) / parts) * 10.0**-decade
        values += [middles, -middles] if signed else [middles]
    return torch.cat(values).sort().values.float().to(device)
