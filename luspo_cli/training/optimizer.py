"""The optimizer: how it is built from the configuration, and its state on disk.

AdamW with weight decay on matrices only: norms and biases set a scale, and pulling a scale to zero is no regularisation. The
state is stored by the parameters' names as safetensors, never as a pickle; what is read back is what was written, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from luspo_cli.config.update import UpdateConfig
from luspo_cli.training.sharding import shard_like

STATE_FILE = "optimizer.safetensors"


def make_optimizer(policy: torch.nn.Module, settings: UpdateConfig) -> tuple[list[str], torch.optim.Optimizer]:
    """Return the names of the trained parameters in the optimizer's order, and the optimizer."""
    named = [(name, parameter) for name, parameter in policy.named_parameters() if parameter.requires_grad]
    matrices = [(name, parameter) for name, parameter in named if parameter.dim() >= 2]
    others = [(name, parameter) for name, parameter in named if parameter.dim() < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": [parameter for _, parameter in matrices], "weight_decay": settings.weight_decay},
            {"params": [parameter for _, parameter in others], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=settings.betas,
        fused=True,
    )
    return [name for name, _ in (*matrices, *others)], optimizer


def save_optimizer(folder: Path, state: Mapping[int, Mapping[str, torch.Tensor]], names: list[str]) -> None:
    """Write the state of every parameter, by its number, under `name::key`; `names` are in the optimizer's order."""
    from safetensors.torch import save_file

    tensors = {
        f"{names[index]}::{key}": value.detach().cpu().contiguous()
        for index, values in state.items()
        for key, value in values.items()
    }
    save_file(tensors, folder / STATE_FILE)


def load_optimizer(folder: Path, optimizer: torch.optim.Optimizer, names: list[str]) -> None:
    """Restore what `save_optimizer` wrote in `folder`; `names` are in the optimizer's order."""
    from safetensors.torch import load_file

    tensors = load_file(folder / STATE_FILE)
    state: dict[int, dict[str, Any]] = {}
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for index, (name, weight) in enumerate(zip(names, weights, strict=True)):
        found = {key.rsplit("::", 1)[1]: value for key, value in tensors.items() if key.rsplit("::", 1)[0] == name}
        own = {key: shard_like(weight, value) for key, value in found.items()}
        if own:
            state[index] = own
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
