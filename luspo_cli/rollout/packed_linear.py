"""A sampling copy of the policy in bfloat16, with weights laid out for the CPU's matrix unit.

A decode step of a few dozen rows is bound by reading the weights once; oneDNN reads its own blocked layout about 1.5 times
faster than rows of a plain matrix (bench/rollout.py). The operators are the ones that torch's own compiler emits for frozen
weights. Where they are missing the plain layers serve.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def can_pack(weight: Tensor) -> bool:
    """Whether this torch and this weight have the blocked bfloat16 layout."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class PackedLinear(nn.Module):
    """A linear layer that keeps only the blocked copy of its weight; call `pack` again after the weight changed."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.pack(weight, bias)

    def pack(self, weight: Tensor, bias: Tensor | None) -> None:
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(torch.bfloat16).contiguous(), None)
        self.bias = None if bias is None else bias.detach().to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def bfloat16_copy(model: nn.Module, device: torch.device | None = None) -> nn.Module:
    """A bfloat16 copy of `model` for sampling, on its device unless told; its linear layers packed where this machine can."""
    twin = copy.deepcopy(model).to(device=device, dtype=torch.bfloat16).requires_grad_(False)
    weight = next(twin.parameters())
    if can_pack(weight):
        for parent in list(twin.modules()):
            for name, layer in list(parent.named_children()):
                if type(layer) is nn.Linear:
                    setattr(parent, name, PackedLinear(layer.weight, layer.bias))
    return twin


@torch.no_grad()
def copy_weights(source: nn.Module, twin: nn.Module) -> None:
    """Bring every weight of `source` into its `bfloat16_copy`."""
    layers = dict(source.named_modules())
    for name, layer in twin.named_modules():
        if isinstance(layer, PackedLinear):
            bias = layers[name].bias
            layer.pack(whole_weight(layers[name].weight), None if bias is None else whole_weight(bias))
        else:
            theirs = dict(layers[name].named_parameters(recurse=False))
            for key, own in layer.named_parameters(recurse=False):
                own.copy_(whole_weight(theirs[key]))


def whole_weight(weight: Tensor) -> Tensor:
    """`weight` itself, or gathered from all processes where each of them holds a share: then all must call this together."""
    gather = getattr(weight, "full_tensor", None)
    return weight if gather is None else gather()
