"""A sampling copy of the policy in bfloat16, with weights laid out for the CPU's matrix unit.

A decode step of a few dozen rows is bound by reading the weights once; oneDNN reads its own blocked layout about 1.5 times
faster than rows of a plain matrix (bench/rollout.py). The operators are the ones that torch's own compiler emits for frozen
weights; they are private to torch, tried with 2.13, and `can_pack` looks for each. Where they are missing the plain layers
serve. This file's packing can go when a plain bfloat16 `nn.Linear` decodes as fast on a CPU (bench/rollout.py compares them).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from luspo_cli.machine import multiplies_bfloat16
from luspo_cli.policy.lora import Float32Embedding, is_adapted, merged_weight
from luspo_cli.processes.sharding import whole_weight


def can_pack(weight: Tensor) -> bool:
    """Whether this torch and this weight have the blocked bfloat16 layout."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and multiplies_bfloat16()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class PackedLinear(nn.Module):
    """A linear layer that keeps only the blocked copy of its weight; call `pack` again after the weight changed."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.pack(weight, bias)

    def pack(self, weight: Tensor, bias: Tensor | None) -> None:
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(torch.bfloat16).contiguous(), None)
        self.bias = None if bias is None else bias.detach().to(torch.bfloat16)

    def release(self) -> None:
        """Let the weight go until the next `pack`."""
        self.packed = self.bias = None

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def bfloat16_copy(model: nn.Module, device: torch.device | None = None) -> nn.Module:
    """A bfloat16 copy of `model` for sampling, on its device unless told: adapters merged, linear layers packed if possible.

    Made weight by weight, so that no second copy in another type exists on the way; what is frozen in bfloat16 is shared.
    """
    device = device or next(model.parameters()).device
    made: dict[int, Any] = {}  # what deepcopy finds here under an object's id it takes for that object's copy
    _convert(model, made, can_pack(torch.empty(0, dtype=torch.bfloat16, device=device)))
    return copy.deepcopy(model, made).requires_grad_(False).to(device)


def _convert(layer: Any, made: dict[int, Any], pack: bool) -> None:
    """Put the bfloat16 form of every layer and weight into `made`; buffers (rotary frequencies) stay as they are."""
    if is_adapted(layer) or (pack and type(layer) is nn.Linear):
        made[id(layer)] = _linear(merged_weight(layer), layer.bias, pack)
        return
    for weight in layer.parameters(recurse=False):
        shared = weight.dtype == torch.bfloat16 and not weight.requires_grad
        made[id(weight)] = weight if shared else nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=False)
    if isinstance(layer, Float32Embedding):
        made[id(layer)] = nn.Embedding.from_pretrained(made[id(layer.weight)])
    for inner in layer.children():
        _convert(inner, made, pack)


def _linear(weight: Tensor, bias: Tensor | None, pack: bool) -> nn.Module:
    """A frozen bfloat16 linear layer of its own."""
    if pack:
        return PackedLinear(weight, bias)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.to(torch.bfloat16), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().to(torch.bfloat16), requires_grad=False)
    return layer


@torch.no_grad()
def release_weights(source: nn.Module, twin: nn.Module) -> None:
    """Free what a copy of `source` holds besides weights that both share; it computes nothing until `copy_weights`."""
    shared = set(map(id, source.parameters()))
    for layer in twin.modules():
        if isinstance(layer, PackedLinear):
            layer.release()
        for weight in layer.parameters(recurse=False):
            if id(weight) not in shared:
                weight.data = weight.data.new_empty(0)


@torch.no_grad()
def copy_weights(source: nn.Module, twin: nn.Module) -> None:
    """Bring every weight of `source` into its `bfloat16_copy`, also where that was released."""
    layers = dict(source.named_modules())
    for name, layer in twin.named_modules():
        if isinstance(layer, PackedLinear):
            bias = layers[name].bias
            layer.pack(whole_weight(merged_weight(layers[name])), None if bias is None else whole_weight(bias))
        elif is_adapted(layers[name]):
            _fill(layer.get_parameter("weight"), merged_weight(layers[name]))
        else:
            theirs = dict(layers[name].named_parameters(recurse=False))
            for key, own in layer.named_parameters(recurse=False):
                _fill(own, whole_weight(theirs[key]))


def _fill(own: nn.Parameter, weight: Tensor) -> None:
    if own.shape != weight.shape:  # released
        own.data = torch.empty(weight.shape, dtype=own.dtype, device=own.device)
    own.copy_(weight)
