"""Layers of experts (mixture of experts): how their products are computed, and the names under which their weights are published.

transformers 5 holds all experts of a layer in two 3-D parameters and computes them by one of several functions; this one is ours,
for two reasons. Its products are made in the type of autocast, as those of every other layer, which transformers' grouped
function leaves out. And it adds a token's experts up in a fixed order, so a log-prob depends on its own row alone, up to the
order in which a kernel sums within one product.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import grouped_mm

NAME = "luspo"
GROUPED = (torch.float32, torch.bfloat16, torch.float16)
"""Types that torch's grouped product knows."""
_FUSED = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)$")


def experts(module: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """What the chosen experts of each token add up to, [N, width] in the type of `hidden`.

    `module`: a layer's experts with `gate_up_proj` [E, 2 * inner, width] and `down_proj` [E, width, inner]; `chosen` and
    `weights` are [N, k].
    """
    autocast = torch.is_autocast_enabled(hidden.device.type)
    dtype = torch.get_autocast_dtype(hidden.device.type) if autocast else hidden.dtype
    by_expert = chosen.reshape(-1).argsort(stable=True)
    ends = torch.bincount(chosen.reshape(-1), minlength=module.num_experts).cumsum(0).to(torch.int32)
    read = hidden.to(dtype)[by_expert // chosen.shape[1]]
    inner = module._apply_gate(_product(read, module.gate_up_proj.to(dtype), ends))
    found = _product(inner, module.down_proj.to(dtype), ends) * weights.to(dtype).reshape(-1)[by_expert, None]
    return found[by_expert.argsort()].view(*chosen.shape, -1).sum(1).to(hidden.dtype)


def _product(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """Rows [S, in], those of expert e ending before `ends[e]`, times its matrix of [E, out, in]."""
    if rows.dtype in GROUPED:
        return grouped_mm(rows, matrices.transpose(1, 2), offs=ends)
    last = [0, *ends.tolist()]
    return torch.cat([rows[last[e] : last[e + 1]] @ matrix.t() for e, matrix in enumerate(matrices)])


def register() -> None:
    """Make `experts_implementation="luspo"` known to transformers; calling it again changes nothing."""
    from transformers.integrations.moe import ExpertsInterface

    ExpertsInterface.register(NAME, experts)


def is_experts(layer: nn.Module) -> bool:
    """Whether a module holds the fused matrices of a layer's experts."""
    return hasattr(layer, "gate_up_proj") and hasattr(layer, "num_experts")


def published(name: str, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A weight as model files and vLLM name it: of fused experts each expert's matrices, any other as it is."""
    found = _FUSED.match(name)
    if found is None:
        yield name, weight
        return
    for number, own in enumerate(weight):
        if found[2] == "down_proj":
            yield f"{found[1]}.{number}.down_proj.weight", own
        else:
            for part, matrix in zip(("gate_proj", "up_proj"), own.chunk(2), strict=True):
                yield f"{found[1]}.{number}.{part}.weight", matrix
