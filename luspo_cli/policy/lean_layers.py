"""Decoder layers that keep fewer activations for the backward pass of a bfloat16 pass, with the same numbers bit for bit.

Autograd keeps what each operation needs, and of a layer under autocast that is twice what has to be: a bfloat16 copy of every
weight, the same input in bfloat16 once for each product that reads it, a norm's input and its normalised values in float32, and
of a gated feed-forward the activated gate and the product beside the gate and the other half. Here a product keeps its input
once and rounds its weight again in the backward pass, and norms and gates are computed again from their inputs. No product of
matrices is: that is what gradient checkpointing pays for keeping less still. Of a token and layer 22 bytes times the width and
4 times the feed-forward's are left, of 36 and 8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from luspo_cli.policy.supported import DENSE


def can_be_lean(model: Any) -> bool:
    """Whether the layers are of the known form, their weights float32 and trained, and no layer is computed again as a whole."""
    return (
        model.config.model_type in DENSE
        and not getattr(model, "is_gradient_checkpointing", False)
        and all(weight.requires_grad and weight.dtype == torch.float32 for weight in model.model.layers.parameters())
    )


@contextmanager
def lean_layers(model: Any) -> Iterator[None]:
    """Within this block, under autocast, the layers of `model` keep less; the backward pass may come after it."""
    of_product = _OfProducts()
    replaced: list[nn.Module] = []
    for module in model.model.layers.modules():
        kind = type(module).__name__
        if "forward" in vars(module):  # another library's
            continue
        if type(module) is nn.Linear:
            vars(module)["forward"] = MethodType(of_product, module)
        elif kind.endswith("RMSNorm"):
            vars(module)["forward"] = MethodType(_norm, module)
        elif kind.endswith("MLP") and type(module.down_proj) is nn.Linear and module.down_proj.bias is None:
            vars(module)["forward"] = MethodType(_gated, module)
        else:
            continue
        replaced.append(module)
    try:
        yield
    finally:
        for module in replaced:
            del vars(module)["forward"]


class _OfProducts:
    """The forward of linear layers, which remembers the last input in the compute type: query, key and value read one."""

    def __init__(self) -> None:
        self._states: Tensor | None = None
        self._rounded: Tensor | None = None

    def __call__(self, layer: nn.Linear, states: Tensor) -> Tensor:
        if self._states is not states or self._rounded is None:
            dtype = torch.get_autocast_dtype(states.device.type)
            self._states, self._rounded = states, states.detach().to(dtype)
        found: Tensor = _Product.apply(states, self._rounded, layer.weight, layer.bias)
        return found


def _norm(layer: nn.Module, states: Tensor) -> Tensor:
    found: Tensor = _Again.apply(MethodType(type(layer).forward, layer), states, layer.weight)
    return found


def _gated(layer: Any, states: Tensor) -> Tensor:
    gate, other = layer.gate_proj(states), layer.up_proj(states)
    found: Tensor = _GatedProduct.apply(layer.act_fn, gate, other, layer.down_proj.weight)
    return found


class _Product(torch.autograd.Function):
    """A linear layer: `rounded` are the `states` in the compute type, which the result has too."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, rounded: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rounded, weight)
        ctx.dtype, ctx.has_bias = states.dtype, bias is not None
        return linear(rounded, weight.to(rounded.dtype), None if bias is None else bias.to(rounded.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rounded, weight = ctx.saved_tensors
        to_states, to_weight = _through(gradients[0], rounded, weight)
        to_bias = _rows(gradients[0]).sum(0).to(weight.dtype) if ctx.has_bias else None
        return to_states.to(ctx.dtype), None, to_weight, to_bias


class _GatedProduct(torch.autograd.Function):
    """The last product of a gated feed-forward, of `activation(gate) * other`, which is computed again for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, activation: Callable[[Tensor], Tensor], gate: Tensor, other: Tensor, weight: Tensor
    ) -> Tensor:
        ctx.save_for_backward(gate, other, weight)
        ctx.activation = activation
        inner = activation(gate) * other
        return linear(inner, weight.to(inner.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gate, other, weight = ctx.saved_tensors
        with torch.enable_grad():
            gate, other = gate.detach().requires_grad_(), other.detach().requires_grad_()
            inner = ctx.activation(gate) * other
        to_inner, to_weight = _through(gradients[0], inner.detach(), weight)
        return None, *torch.autograd.grad(inner, (gate, other), to_inner), to_weight


class _Again(torch.autograd.Function):
    """`run(states)`, which reads `weight` besides, without anything but these two kept."""

    @staticmethod
    def forward(ctx: Any, run: Callable[[Tensor], Tensor], states: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(states, weight)
        ctx.run, ctx.low = run, torch.get_autocast_dtype(states.device.type)
        return run(states)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        states, weight = ctx.saved_tensors
        with torch.enable_grad(), torch.autocast(states.device.type, ctx.low):
            own = states.detach().requires_grad_()
            found = ctx.run(own)
        return None, *torch.autograd.grad(found, (own, weight), gradients[0])


def _through(gradient: Tensor, rounded: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of a product's input, in the compute type, and of its weight."""
    flat = _rows(gradient)
    to_input = flat.mm(weight.to(rounded.dtype)).view(rounded.shape)
    return to_input, flat.t().mm(_rows(rounded)).to(weight.dtype)


def _rows(states: Tensor) -> Tensor:
    return states.reshape(-1, states.shape[-1])
