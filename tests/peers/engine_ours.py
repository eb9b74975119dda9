"""Our side of "one preset, two engines": one step of our engine for every objective, written for verl's engine to do again.

    python tests/peers/engine_ours.py FOLDER

writes the starting model (`model/`), the batch of a run's stored rollouts (`batch.json`), each case with the overrides that make
verl do the same (`cases.json`) and the weights after the step (`ours/CASE.safetensors`). `engine_verl.py` does the same in verl's
environment; `test_verl_engine.py` runs both and compares.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from luspo_cli.advantages import ADVANTAGES
from luspo_cli.config.layers import resolve_train
from luspo_cli.config.objective import NAMED_OBJECTIVES, resolve
from luspo_cli.config.peers import ACTOR, verl_settings
from luspo_cli.config.run import TrainRun
from luspo_cli.config.verl_losses import verl_plugin_settings
from luspo_cli.grading.verdict import Reason, Verdict
from luspo_cli.policy.loading import load_model
from luspo_cli.policy.packing import policy_batch, rows_of
from luspo_cli.policy.policy import Policy
from luspo_cli.processes.accelerate import make_accelerator, prepare
from luspo_cli.records import Message, Problem, Reward, Rollout, ScoredGroup, StopReason
from luspo_cli.training.optimizer import learning_rate, make_optimizer
from luspo_cli.training.update import Updater

RUN = Path(__file__).parents[1] / "fixtures" / "older_run" / "finished"
"""A run folder with a checkpoint and 2 stored steps of 4 problems with 4 responses each, 3 to 48 tokens long."""
GROUP_SIZE = 4
LIMIT = 48
SETTINGS = (
    f"model.path='{RUN / 'checkpoints' / 'step-000004' / 'model'}'",
    "rollout.problems=8",
    f"rollout.group_size={GROUP_SIZE}",
    f"rollout.max_response_tokens={LIMIT}",
    "update.mini_batches=4",
    "update.tokens_per_micro_batch=256",
    "update.learning_rate=1e-3",
)
"""On top of the preset `tiny`: float32, AdamW with betas 0.9 and 0.99, gradients clipped at norm 1."""
FURTHER = {
    "luspo, gradients not clipped": ("luspo", "update.gradient_clip=1e6"),
    "luspo, one mini-batch": ("luspo", "update.mini_batches=1"),
    "luspo with k3": ("luspo", "objective.kl_coefficient=0.1", "update.learning_rate=1e-4"),
    "luspo with entropy": ("luspo", "objective.entropy_coefficient=0.01"),
    "grpo with a dual clip": ("grpo", "objective.dual_clip=1.1"),
    "luspo, one mini-batch, weight decay": ("luspo", "update.mini_batches=1", "update.weight_decay=0.1"),
}
"""Case -> objective and assignments, beside every named objective as it is."""


def cases() -> Iterator[tuple[str, TrainRun]]:
    carried = [name for name in NAMED_OBJECTIVES if not verl_plugin_settings(resolve(name)).missing]
    for name, (objective, *sets) in {**{name: (name,) for name in carried}, **FURTHER}.items():
        yield name, resolve_train(preset="tiny", objective=objective, sets=[*SETTINGS, *sets])


def stored_rows() -> list[dict[str, Any]]:
    """The stored rollouts of the run, in order."""
    return [row for file in sorted((RUN / "rollouts").glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def scored_groups(rows: list[dict[str, Any]], advantage: str) -> list[ScoredGroup]:
    found = []
    for first in range(0, len(rows), GROUP_SIZE):
        group = rows[first : first + GROUP_SIZE]
        assert len({row["problem_id"] for row in group}) == 1
        rewards = [row["reward"] for row in group]
        found.append(
            ScoredGroup(
                Problem(group[0]["problem_id"], (Message("user", group[0]["prompt"]),), group[0]["answer"], "made"),
                tuple(
                    Rollout(
                        row["problem_id"],
                        tuple(row["prompt_tokens"]),
                        tuple(row["response_tokens"]),
                        row["response"],
                        StopReason(row["stop_reason"]),
                    )
                    for row in group
                ),
                tuple(Reward(total, total, 0.0, 0.0, Verdict("", total == 1.0, Reason.EXACT)) for total in rewards),
                tuple(ADVANTAGES[advantage](rewards)),
            )
        )
    return found


def reference_policy(config: TrainRun) -> Policy:
    """The policy of a KL term: near the starting weights, not at them.

    At them the term's gradient is rounding noise, of which AdamW's first step makes whole steps wherever the policy's gradient
    is 0.
    """
    model = load_model(config.model).model.requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.mul_(1 + 0.01 * torch.randn(weight.shape, generator=generator))
    return Policy(model, config.rollout.temperature)


def reference_logprobs(config: TrainRun, rows: list[dict[str, Any]]) -> list[list[float]]:
    """Of every stored response, under `reference_policy`: verl is handed them, for its own reference has the starting weights."""
    policy = reference_policy(config)
    every = [row for group in scored_groups(rows, "group_mean") for row in rows_of(group)]
    found = [policy(policy_batch([row]))[0][0] for row in every]
    return [row.tolist() for row in found]


def one_step(config: TrainRun, rows: list[dict[str, Any]]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The weights after the step, as a checkpoint holds them, and the step's metrics."""
    model = load_model(config.model).model
    accelerator = make_accelerator(False, idle_tower=False, sharded=False)
    policy = Policy(model, config.rollout.temperature).train()
    _, optimizer = make_optimizer(policy, config.update)
    policy, optimizer = prepare(accelerator, policy, optimizer, False)
    reference = reference_policy(config) if config.objective.kl_coefficient > 0 else None
    updater = Updater(policy, optimizer, accelerator, config, reference)
    groups = scored_groups(rows, config.objective.advantage or "")
    metrics = updater.update(groups, learning_rate(0, config.run.steps, config.update))
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}, metrics


def as_overrides(config: TrainRun) -> dict[str, Any]:
    """The part of the run that is not the objective, in verl's keys."""
    update = config.update
    return {
        f"{ACTOR}.ppo_mini_batch_size": config.rollout.problems // update.mini_batches,
        "actor_rollout_ref.rollout.n": config.rollout.group_size,
        "actor_rollout_ref.rollout.temperature": config.rollout.temperature,
        f"{ACTOR}.optim.lr": update.learning_rate,
        f"{ACTOR}.optim.betas": list(update.betas),
        f"{ACTOR}.optim.weight_decay": update.weight_decay,
        f"{ACTOR}.optim.clip_grad": update.gradient_clip,
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rows = stored_rows()
    (folder / "ours").mkdir(parents=True)
    written = {}
    for name, config in cases():
        if not (folder / "model").exists():
            shutil.copytree(config.model.path, folder / "model")
        weights, metrics = one_step(config, rows)
        save_file(weights, folder / "ours" / f"{name}.safetensors")
        written[name] = {
            "overrides": as_overrides(config),
            "stock": dict(verl_settings(config.objective, LIMIT).values),
            "differences": verl_settings(config.objective, LIMIT).differences,
            "plugin": dict(verl_plugin_settings(config.objective, LIMIT).values),
            "metrics": metrics,
        }
    keys = ("problem_id", "prompt_tokens", "response_tokens", "reward", "ref_logprobs")
    for row, logprobs in zip(rows, reference_logprobs(config, rows), strict=True):
        row["ref_logprobs"] = logprobs
    (folder / "batch.json").write_text(json.dumps([{key: row[key] for key in keys} for row in rows]))
    (folder / "cases.json").write_text(json.dumps(written, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
