"""FSDP2 (torch's `fully_shard`): every process keeps a share of each weight, gradient and moment, in float32.

Decided here:
- Decoder layers are gathered one at a time, everything else with the policy as the root, whose `forward` is the only place that
  touches weights.
- Gathered weights are float32 and autocast computes with them, as on one process: a sharded step has the same numbers as a whole
  one. FSDP's own bfloat16 policy would halve the traffic and change them.
- Gradients are reduced in every micro-batch. Waiting for the last one would keep a whole gradient on each process, and memory is
  what sharding is for.
- A vision tower is not trained and stays whole on each process: rows with images may be on some processes only, and a layer that
  is gathered there and not elsewhere would wait for ever.
- Checkpoints hold whole tensors: what one process writes any number of processes read.
- The first process alone reads a model: the others get their shares from it, weight by weight, so that one whole copy exists in
  all. Before that their weights have a place and no numbers (`without_numbers`), which takes no memory until it is written to.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from luspo_cli.config.model import ModelConfig
from luspo_cli.errors import UsageError
from luspo_cli.processes.ranks import Ranks

Model = TypeVar("Model", bound=nn.Module)


def is_sharded(model: ModelConfig, ranks: Ranks) -> bool:
    """Whether weights are shared out over the processes of the run."""
    return ranks.size > 1 and model.sharding == "full"


def gets_weights(model: ModelConfig, ranks: Ranks) -> bool:
    """Whether this process reads no weights from a file, since `shard` hands it its share of those of the first one."""
    return is_sharded(model, ranks) and not ranks.is_first


def without_numbers(model: nn.Module) -> None:
    """Give every weight of a model on the meta device a place in memory, unwritten; buffers and ties are left to the caller."""
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            place = torch.empty(weight.shape, dtype=weight.dtype)
            setattr(module, name, nn.Parameter(place, weight.requires_grad))


def twin(model: Model) -> Model:
    """A second module with the very numbers of `model`: to be sharded as well, and not to be moved."""
    own = {id(weight): nn.Parameter(weight.detach(), requires_grad=False) for weight in model.parameters()}
    return copy.deepcopy(model, own)  # what stands there under an object's id is taken for its copy


def shard(policy: nn.Module, device: torch.device) -> None:
    """Share the weights that `policy` has on the first process out over all processes, in place; all call it together."""
    from torch.distributed.device_mesh import init_device_mesh

    refuse_trained_tower(policy)
    # What reads the policy's numbers never writes into them.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    tower = _vision_tower(policy)
    if tower is not None:
        tower.to(device)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for layer in decoder_layers(policy):
        _shard_one(layer, mesh, set())
    whole = set() if tower is None else set(tower.parameters())
    # Not torch's default for a root, which stays gathered after a pass without gradients: the optimizer must find its shares.
    _shard_one(policy, mesh, whole, reshard_after_forward=True)


@torch.no_grad()
def _shard_one(module: nn.Module, mesh: Any, whole: set[nn.Parameter], **options: Any) -> None:
    """Share out what is not yet shared out of `module`, and bring the first process's numbers into everybody's share.

    `whole`: weights that stay whole. What the first process held of a weight is free when all have their shares of it.
    """
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, distribute_tensor

    given = {name: weight.detach() for name, weight in module.named_parameters() if not isinstance(weight, DTensor)}
    fully_shard(module, mesh=mesh, ignored_params=whole, **options)
    for name, weight in module.named_parameters():
        if name not in given:
            continue
        numbers = given.pop(name)
        if isinstance(weight, DTensor):
            own = distribute_tensor(numbers.to(weight.device), mesh, weight.placements, src_data_rank=0)
            weight.to_local().copy_(own.to_local())
        else:
            torch.distributed.broadcast(weight, src=0)


def refuse_trained_tower(model: nn.Module) -> None:
    """UsageError for a vision tower whose weights would move: rows with images may be on some processes only."""
    tower = _vision_tower(model)
    if tower is not None and any(weight.requires_grad for weight in tower.parameters()):
        raise UsageError(
            "model.sharding = full trains a vision model's language part only: set model.freeze_vision = true,"
            " or model.sharding = none"
        )


def _vision_tower(model: nn.Module) -> nn.Module | None:
    return next((module for name, module in model.named_modules() if name.endswith("visual")), None)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder's layers, first to last, wherever the architecture keeps them; none of a vision tower."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and name.endswith("layers") and "visual" not in name:
            return list(module)
    return []


def gather_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, keep: bool
) -> tuple[dict[str, Tensor], dict[int, dict[str, Tensor]]]:
    """Whole weights and whole optimizer state on the processes with `keep`; all processes call it together."""
    return whole_weights(model, keep), whole_optimizer_state(optimizer, keep)


@torch.no_grad()
def whole_weights(model: nn.Module, keep: bool) -> dict[str, Tensor]:
    """The state of `model` on the CPU, each tensor whole; all processes call it together and those with `keep` get it.

    Tensors that several names share are shared in the result too.
    """
    gathered: dict[int, Tensor] = {}
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in gathered:
            full = whole_weight(tensor.detach())
            gathered[id(tensor)] = full.cpu() if keep else full.new_empty(0)
        state[name] = gathered[id(tensor)]
    return state if keep else {}


@torch.no_grad()
def whole_optimizer_state(optimizer: torch.optim.Optimizer, keep: bool) -> dict[int, dict[str, Tensor]]:
    """The optimizer's state by parameter number, each tensor whole, on the CPU; as `whole_weights`."""
    state: dict[int, dict[str, Tensor]] = {}
    for index, values in optimizer.state_dict()["state"].items():
        own = {key: whole_weight(value) for key, value in values.items()}
        if keep:
            state[index] = {key: value.cpu() for key, value in own.items()}
    return state


def whole_weight(weight: Tensor) -> Tensor:
    """`weight` itself, or gathered from all processes where each of them holds a share: then all must call this together."""
    gather = getattr(weight, "full_tensor", None)
    return weight if gather is None else gather()


def shard_like(weight: Tensor, whole: Tensor) -> Tensor:
    """This process's part of a whole tensor that belongs to `weight`; the tensor itself where nothing is shared out."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(weight, DTensor) or whole.shape != weight.shape:
        return whole
    # Every process has read the same file: each cuts its own part out, and nothing is sent.
    own = distribute_tensor(whole.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None)
    return own.clone()  # a part of the whole tensor would keep all of it in memory
