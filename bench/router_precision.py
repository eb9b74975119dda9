"""How many tokens meet other experts when a model computes in bfloat16 than in float32, over the stored rollouts of a run.

    python -m bench.router_precision RUN [--rows 128]

The policy is the run's newest checkpoint. Three ways to compute against float32: passes in bfloat16 (autocast, as an update with
model.compute_dtype = bfloat16 makes them); the same with the routers alone in float32; and the sampler's bfloat16 copy of the
weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luspo_cli.config.model import ModelConfig
from luspo_cli.errors import UsageError
from luspo_cli.policy.loading import load_model
from luspo_cli.policy.packing import PolicyBatch, Row, policy_batch, split_micro_batches
from luspo_cli.policy.policy import Policy
from luspo_cli.policy.routing import RoutingAsked, changed_experts, routers
from luspo_cli.records import Rollout, StopReason
from luspo_cli.rollout.in_process.packed import bfloat16_copy
from luspo_cli.runs.checkpoints import find_checkpoints
from luspo_cli.runs.stored_rollouts import read_columns, stored_steps

BUDGET = 4096


def read(run: Path, rows: int) -> tuple[Any, list[PolicyBatch]]:
    """The newest checkpoint's model and the run's last stored rollouts."""
    checkpoints = find_checkpoints(run / "checkpoints")
    if not checkpoints or not stored_steps(run):
        raise UsageError(f"{run} has no checkpoint or stores no rollouts")
    newest = max(checkpoints, key=lambda checkpoint: checkpoint.step)
    model = load_model(ModelConfig(path=str(newest.path / "model"))).model
    if not routers(model):
        raise UsageError(f"the model of {run} has no experts")
    table = read_columns(list(stored_steps(run).values())[-1], ("prompt_tokens", "response_tokens"))
    found = [
        Row(Rollout("", tuple(row["prompt_tokens"]), tuple(row["response_tokens"]), "", StopReason.END), 1.0)
        for row in table.to_pylist()[:rows]
    ]
    return model, [policy_batch(own) for own in split_micro_batches(found, BUDGET)]


@torch.no_grad()
def passes(policy: Policy, batches: Sequence[PolicyBatch]) -> tuple[Tensor, Tensor]:
    """Choices [L, M, k] and log-probs [M] of all response tokens."""
    chosen, logprobs = [], []
    for batch in batches:
        found, _, routed = policy(batch, routing=RoutingAsked())
        chosen.append(routed.chosen[:, routed.read])
        logprobs.append(found[batch.response_mask])
    return torch.cat(chosen, 1), torch.cat(logprobs)


def float32_routers(model: Any) -> None:
    """Make the routers of a model compute in float32 within autocast, from hidden states as they come."""

    def plain(router: Any) -> Callable[[Tensor], Any]:
        forward = router.forward

        def computed(hidden: Tensor) -> Any:
            with torch.autocast(hidden.device.type, enabled=False):
                return forward(hidden.float())

        return computed

    for router in routers(model):
        router.forward = plain(router)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--rows", type=int, default=128)
    options = parser.parse_args(arguments)
    model, batches = read(options.run, options.rows)
    wanted, exact = passes(Policy(model, 1.0), batches)
    copy = bfloat16_copy(model)
    found = {}
    with torch.autocast("cpu", torch.bfloat16):
        found["bfloat16 passes"] = passes(Policy(model, 1.0), batches)
    found["the sampler's bfloat16 copy"] = passes(Policy(_with_head(copy, model), 1.0), batches)
    float32_routers(model)
    with torch.autocast("cpu", torch.bfloat16):
        found["bfloat16, routers in float32"] = passes(Policy(model, 1.0), batches)
    print(f"{len(exact)} response tokens, {len(wanted)} layers, {wanted.shape[-1]} experts a token; against float32")
    print(f"{'':<30}{'tokens changed':>15}{'choices':>9}{'|d| changed':>13}{'unchanged':>11}")
    for name, (chosen, logprobs) in found.items():
        layers, experts = changed_experts(wanted, chosen)
        moved, off = layers > 0, (logprobs - exact).abs()
        share = float(experts.sum()) / wanted.numel()
        print(f"{name:<30}{float(moved.float().mean()):>15.4f}{share:>9.4f}", end="")
        print(f"{float(off[moved].mean()):>13.2e}{float(off[~moved].mean()):>11.2e}")


def _with_head(copy: Any, model: Any) -> Any:
    """The copy with a head whose matrix the log-probs can read: a packed one has none."""
    copy.lm_head = torch.nn.Linear(*reversed(model.lm_head.weight.shape), bias=False).bfloat16()
    copy.lm_head.weight.data.copy_(model.lm_head.weight)
    return copy.requires_grad_(False)


if __name__ == "__main__":
    main()
