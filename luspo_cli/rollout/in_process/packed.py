"""A sampling copy of the policy, with weights laid out for the processor's matrix instructions: in bfloat16, or in float32.

A decode step of a few dozen rows is bound by reading the weights once; oneDNN reads its own blocked layout about 1.5 times
faster than rows of a plain matrix in bfloat16. In float32, on a processor without AVX-512, the plain product of few rows is far
from what the machine can do, and that of the blocked layout up to four times as fast (bench/rollout.py). The operators are the
ones that torch's own compiler emits for frozen weights; they are private to torch, tried with 2.13, and `can_pack` looks for
each. Where they are missing the plain layers serve. This file's packing can go when a plain `nn.Linear` decodes as fast on a CPU
(bench/rollout.py compares them).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from luspo_cli import machine
from luspo_cli.machine import multiplies_bfloat16
from luspo_cli.policy.lora import Float32Embedding, is_adapted, merged_weight
from luspo_cli.processes.sharding import whole_weight


def can_pack(weight: Tensor) -> bool:
    """Whether this torch and this weight have a blocked layout that is faster: bfloat16 where the processor multiplies it, else
    float32 (with AVX-512 that was not measured)."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == (torch.bfloat16 if multiplies_bfloat16() else torch.float32)
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def packs_float32(model: nn.Module) -> bool:
    """Whether a model in float32 samples faster with a packed copy of its weights."""
    linear = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))
    return machine.packs_float32(linear) and can_pack(next(model.parameters()).new_empty(0, dtype=torch.float32))


class PackedLinear(nn.Module):
    """A linear layer that keeps only the blocked copy of its weight; call `pack` again after the weight changed."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.pack(weight, bias)

    def pack(self, weight: Tensor, bias: Tensor | None) -> None:
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(self.dtype).contiguous(), None)
        self.bias = None if bias is None else bias.detach().to(self.dtype, copy=True)

    def release(self) -> None:
        """Let the weight go until the next `pack`."""
        self.packed = self.bias = None

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def bfloat16_copy(model: nn.Module, device: torch.device | None = None) -> nn.Module:
    """A bfloat16 copy of `model` for sampling, on its device unless told: adapters merged, linear layers packed if possible.

    Made weight by weight, so that no second copy in another type exists on the way; what is frozen in bfloat16 is shared.
    """
    return _copy(model, torch.bfloat16, device or next(model.parameters()).device)


def float32_copy(model: nn.Module) -> nn.Module:
    """The same in float32, for a model that `packs_float32`."""
    return _copy(model, torch.float32, next(model.parameters()).device)


def sampling_model(model: nn.Module, compute_dtype: str, device: torch.device | None = None) -> nn.Module:
    """What samples fastest for `model` in this type: a copy of its weights, or itself in float32 where no copy is faster."""
    if compute_dtype == "bfloat16":
        return bfloat16_copy(model, device)
    return float32_copy(model) if packs_float32(model) else model


def _copy(model: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    made: dict[int, Any] = {}  # what deepcopy finds here under an object's id it takes for that object's copy
    _convert(model, made, dtype, can_pack(torch.empty(0, dtype=dtype, device=device)))
    return copy.deepcopy(model, made).requires_grad_(False).to(device)


def _convert(layer: Any, made: dict[int, Any], dtype: torch.dtype, pack: bool) -> None:
    """Put the form of every layer and weight in `dtype` into `made`; buffers (rotary frequencies) stay as they are."""
    if is_adapted(layer) or (pack and type(layer) is nn.Linear):
        made[id(layer)] = _linear(merged_weight(layer), layer.bias, dtype, pack)
        return
    for weight in layer.parameters(recurse=False):
        shared = weight.dtype == dtype and not weight.requires_grad
        made[id(weight)] = weight if shared else nn.Parameter(weight.detach().to(dtype, copy=True), requires_grad=False)
    if isinstance(layer, Float32Embedding):
        made[id(layer)] = nn.Embedding.from_pretrained(made[id(layer.weight)])
    for inner in layer.children():
        _convert(inner, made, dtype, pack)


def _linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, pack: bool) -> nn.Module:
    """A frozen linear layer of its own."""
    if pack:
        return PackedLinear(weight, bias, dtype)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().to(dtype, copy=True), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().to(dtype, copy=True), requires_grad=False)
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
    """Bring every weight of `source` into its copy, also where that was released."""
    layers = dict(source.named_modules())
    for name, layer in twin.named_modules():
        if isinstance(layer, PackedLinear):
            bias = layers[name].bias
            layer.pack(whole_weight(merged_weight(layers[name])), None if bias is None else whole_weight(bias))
        elif is_adapted(layers[name]):
            _fill(layer.get_parameter("weight"), merged_weight(layers[name]))
            if layer.bias is not None:
                _fill(layer.get_parameter("bias"), layers[name].bias)
        else:
            theirs = dict(layers[name].named_parameters(recurse=False))
            for key, own in layer.named_parameters(recurse=False):
                _fill(own, whole_weight(theirs[key]))


def _fill(own: nn.Parameter, weight: Tensor) -> None:
    if own.shape != weight.shape:  # released
        own.data = torch.empty(weight.shape, dtype=own.dtype, device=own.device)
    own.copy_(weight)
