"""The optimizer: how it is built from the configuration, its learning rate at each step, and its state on disk.

AdamW with weight decay on matrices only: norms and biases set a scale, and pulling a scale to zero is no regularisation. The
state is stored by the parameters' names as safetensors, never as a pickle; what is read back is what was written, bit for bit.

Three ways to make the state smaller. `update.moments` keeps AdamW's moments in bfloat16 or in 8 bits, on any device (moments.py).
`adamw-8bit` is bitsandbytes' AdamW with block-wise 8-bit moments (arXiv 2110.02861), a kernel for GPUs. Both are another
arithmetic, so another run. Offloading keeps moments and a copy of the weights in the host's memory and steps there: the same
arithmetic, on another device. torchao's 8-bit AdamW was tried and left out: it compiles its step with the machine's C++ compiler,
which took minutes, and peft's import of it seconds more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from luspo_cli.config.update import UpdateConfig
from luspo_cli.errors import UsageError
from luspo_cli.processes.sharding import shard_like
from luspo_cli.training.memory import offload_refused
from luspo_cli.training.moments import SMALLEST, SmallMomentsAdamW

Moments = Literal["float32", "bfloat16", "8bit"]
STATE_FILE = "optimizer.safetensors"
COSINE_FLOOR = 0.1


def check_optimizer(settings: UpdateConfig) -> None:
    """Raise UsageError where this machine cannot do what [update] asks of the optimizer."""
    if refused := offload_refused(settings):
        raise UsageError(refused)
    if settings.optimizer == "adamw-8bit":
        _bitsandbytes()


def learning_rate(step: int, steps: int, config: UpdateConfig) -> float:
    """Learning rate of training step `step` (counted from 0) of `steps`: linear ramp, then hold, line to 0 or cosine to 10 %."""
    # A pure function of the step: a resumed run needs no scheduler state.
    if step < config.ramp_steps:
        return config.learning_rate * (step + 1) / config.ramp_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.ramp_steps) / max(1, steps - config.ramp_steps)
    if config.schedule == "linear":
        return config.learning_rate * (1.0 - done)
    return config.learning_rate * (COSINE_FLOOR + (1 - COSINE_FLOOR) * 0.5 * (1 + math.cos(math.pi * done)))


def make_optimizer(policy: torch.nn.Module, settings: UpdateConfig) -> tuple[list[str], torch.optim.Optimizer]:
    """Return the names of the trained parameters in the optimizer's order, and the optimizer."""
    named = [(name, parameter) for name, parameter in policy.named_parameters() if parameter.requires_grad]
    matrices = [(name, parameter) for name, parameter in named if parameter.dim() >= 2]
    others = [(name, parameter) for name, parameter in named if parameter.dim() < 2]
    groups = [
        {"params": [parameter for _, parameter in own], "weight_decay": decay}
        for own, decay in ((matrices, settings.weight_decay), (others, 0.0))
        if own
    ]
    options: dict[str, Any] = {"lr": settings.learning_rate, "betas": settings.betas}
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "adamw-8bit":
        optimizer = _bitsandbytes().optim.AdamW8bit(groups, **options)
    elif settings.offload_optimizer:
        optimizer = OffloadedAdamW(groups, **options, moments=settings.moments)
    else:
        optimizer = _adamw(groups, **options, moments=settings.moments)
    return [name for name, _ in (*matrices, *others)], optimizer


def _adamw(groups: list[dict[str, Any]], moments: Moments, **options: Any) -> torch.optim.Optimizer:
    if moments == "float32":
        return torch.optim.AdamW(groups, **options, fused=True)
    return SmallMomentsAdamW(groups, **options, moments=moments)


def release_gradients(policy: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Hold no gradients until the next backward pass. DDP's are parts of its own buffers, which stay."""
    if not hasattr(policy, "no_sync"):
        optimizer.zero_grad(set_to_none=True)


class OffloadedAdamW(torch.optim.Optimizer):
    """AdamW whose moments and working copy of the weights are in the host's memory; `param_groups` are the device's."""

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], moments: Moments = "float32"
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas})
        self.moments = moments
        self._host = _adamw(
            [
                {**group, "params": [torch.nn.Parameter(_on_host(weight)) for weight in group["params"]]}
                for group in groups
            ],
            moments,
            lr=lr,
            betas=betas,
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Gradients to the host, one step there, weights back to the device."""
        for group, host in zip(self.param_groups, self._host.param_groups, strict=True):
            host["lr"] = group["lr"]
            for weight, twin in zip(group["params"], host["params"], strict=True):
                twin.grad = None if weight.grad is None else weight.grad.to("cpu", torch.float32)
        self._host.step()
        for group, host in zip(self.param_groups, self._host.param_groups, strict=True):
            for weight, twin in zip(group["params"], host["params"], strict=True):
                twin.grad = None
                weight.copy_(twin)

    def state_dict(self) -> dict[str, Any]:
        return self._host.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._host.load_state_dict(state_dict)


def save_optimizer(folder: Path, state: Mapping[int, Mapping[str, Any]], names: list[str]) -> None:
    """Write the state of every parameter, by its number, under `name::key`; `names` are in the optimizer's order."""
    from safetensors.torch import save_file

    tensors = {
        f"{names[index]}::{key}": value for index, values in state.items() for key, value in _flat(values).items()
    }
    save_file(tensors, folder / STATE_FILE)


def load_optimizer(folder: Path, optimizer: torch.optim.Optimizer, names: list[str]) -> None:
    """Restore what `save_optimizer` wrote in `folder`; `names` are in the optimizer's order.

    UsageError where the moments stored there are of another kind than the optimizer's.
    """
    from safetensors import safe_open

    state: dict[int, dict[str, Any]] = {}
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    with safe_open(folder / STATE_FILE, framework="pt") as stored:
        keys: dict[str, list[str]] = {}
        for entry in stored.keys():  # noqa: SIM118  # it is no mapping
            name, key = entry.rsplit("::", 1)
            keys.setdefault(name, []).append(key)
        _refuse_other_moments(stored, keys, optimizer, folder)
        for index, (name, weight) in enumerate(zip(names, weights, strict=True)):
            # One tensor at a time: of a sharded one this process keeps its share alone.
            own = {key: shard_like(weight, stored.get_tensor(f"{name}::{key}")) for key in keys.get(name, ())}
            if own:
                # bitsandbytes counts steps in a plain number.
                state[index] = {key: int(value) if value.dtype == torch.int64 else value for key, value in own.items()}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _refuse_other_moments(
    stored: Any, keys: Mapping[str, list[str]], optimizer: torch.optim.Optimizer, folder: Path
) -> None:
    own = "float32" if isinstance(optimizer, torch.optim.AdamW) else getattr(optimizer, "moments", "adamw-8bit")
    every = {key for of_weight in keys.values() for key in of_weight}
    found = "adamw-8bit" if "state1" in every else "8bit" if "exp_avg_scale" in every else ""
    if not found and "exp_avg" in every:
        name = next(name for name, of_weight in keys.items() if "exp_avg" in of_weight)
        found = "bfloat16" if stored.get_slice(f"{name}::exp_avg").get_dtype() == "BF16" else "float32"
    exact = found == "float32" and own == "8bit"  # a model of small tensors alone has no 8-bit ones
    sizes = [stored.get_slice(f"{name}::exp_avg").get_shape() for name in keys] if exact else []
    if found and found != own and not (exact and all(math.prod(size) < SMALLEST for size in sizes)):
        said = {"adamw-8bit": "update.optimizer = 'adamw-8bit'"}
        before, now = (said.get(kind, f"update.moments = '{kind}'") for kind in (found, own))
        raise UsageError(f"{folder / STATE_FILE} was written with {before} and this run has {now}: set it as it was")


_QUANTISED = "__bnb_optimizer_quant_state__"
"""Where bitsandbytes puts a part of a parameter's state when it hands it out; on disk it is flat, as it takes it back."""


def _flat(values: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """One parameter's state as tensors of their own; the maps of the 8-bit numbers are shared between parameters."""
    flat = {**{key: value for key, value in values.items() if key != _QUANTISED}, **values.get(_QUANTISED, {})}
    tensors = {key: torch.as_tensor(value).detach().cpu().contiguous() for key, value in flat.items()}
    return {key: tensor.clone() if key.startswith("qmap") else tensor for key, tensor in tensors.items()}


def _on_host(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().to("cpu", torch.float32, copy=True)


def _bitsandbytes() -> Any:
    import importlib

    try:
        return importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise UsageError(
            f"update.optimizer = 'adamw-8bit' needs bitsandbytes ({error}): pip install 'luspo[adamw-8bit]'"
        ) from None
