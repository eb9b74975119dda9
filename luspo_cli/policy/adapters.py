"""Low-rank adapters as the rest of the engine sees them: W + scale · B · A (arXiv 2106.09685, section 4.1), by duck typing.

Whoever needs whole matrices (a sampler, a merged model) gets them one at a time from here, so that no second full copy of the
model has to exist; whoever needs the policy as it was before training switches the adapters off. peft made the layers, and
nothing here imports it: sampling and merging of a model without adapters must not need the package.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

ADAPTER = "default"
"""The name that peft gives to the only adapter of a model."""


def is_adapted(layer: nn.Module) -> bool:
    """Whether a layer carries an adapter."""
    return hasattr(layer, "base_layer") and hasattr(layer, "lora_A")


def has_adapters(model: nn.Module) -> bool:
    return any(is_adapted(layer) for layer in model.modules())


@torch.no_grad()
def merged_weight(layer: Any) -> Tensor:
    """A layer's matrix [out, in] as it acts: W + scale · B · A in float32 for an adapted one, else its own weight as it is."""
    if not is_adapted(layer):
        weight: Tensor = layer.weight
        return weight.detach()
    down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight  # [rank, in], [out, rank]
    return torch.addmm(layer.base_layer.weight.float(), up.float(), down.float(), alpha=layer.scaling[ADAPTER])


def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter of `model` under the name that it has without adapters, tied ones once; one merged matrix at a time.

    An adapted matrix comes as a new float32 tensor, every other parameter as it is held. Of a model without adapters these are
    its named parameters.
    """
    seen: set[int] = set()
    for path, layer in model.named_modules():
        if "lora_" in path:
            continue
        if is_adapted(layer):
            yield f"{path}.weight", merged_weight(layer)
            if layer.base_layer.bias is not None:
                yield f"{path}.bias", layer.base_layer.bias.detach()
            continue
        if path.endswith(".base_layer"):
            continue
        for key, parameter in layer.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{path}.{key}" if path else key, parameter.detach()


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Within this block the model computes with its own matrices alone, as before training."""
    layers: list[Any] = [layer for layer in model.modules() if is_adapted(layer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
