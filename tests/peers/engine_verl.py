"""verl's side of "one preset, two engines": the step that `engine_ours.py` made, by verl's own actor worker on gloo.

    RANK=0 WORLD_SIZE=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 VERL_USE_EXTERNAL_MODULES=verl_on_cpu VERL_PLATFORM=cpu \
        VERL_ENGINE_DEVICE=cuda PYTHONPATH=tests/peers python tests/peers/engine_verl.py FOLDER OUT

for every rank. For each case and each of its two settings (a stock loss of verl's, ours of the plug-in) it makes the advantages
with verl's estimator, the old log-probs and the update with `ActorRolloutRefWorker`, and writes OUT/CASE/SETTING.safetensors.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module
from safetensors.torch import save_file
from tensordict import TensorDict
from verl.trainer.ppo import core_algos
from verl.utils import tensordict_utils as tu
from verl.utils.config import validate_config
from verl.workers.engine_workers import ActorRolloutRefWorker
from verl.workers.utils.padding import response_from_nested, response_to_nested

SETTINGS = {
    "data.train_files": "none",
    "data.max_prompt_length": 64,
    "data.max_response_length": 48,
    "data.train_batch_size": 8,
    "actor_rollout_ref.rollout.name": "vllm",
    "actor_rollout_ref.model.use_remove_padding": False,  # packed rows need flash attention's kernels
    "actor_rollout_ref.model.enable_gradient_checkpointing": False,
    "+actor_rollout_ref.model.override_config.attn_implementation": "sdpa",
    "actor_rollout_ref.actor.strategy": "fsdp2",
    "actor_rollout_ref.actor.fsdp_config.model_dtype": "fp32",
    "+actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype": "fp32",
    "actor_rollout_ref.actor.fsdp_config.use_torch_compile": False,
    "actor_rollout_ref.actor.use_dynamic_bsz": True,
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": 256,
    "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz": True,
    "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu": 256,
    "trainer.device": "cpu",
    "trainer.n_gpus_per_node": 1,
}
"""What is set beside the run's own values: float32 on the CPU, rows padded."""


def jagged(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def configured(folder: Path, case: dict[str, Any], setting: str, world: int) -> Any:
    """verl's configuration of a case, validated by verl."""
    values = SETTINGS | case["overrides"] | case[setting] | {"actor_rollout_ref.model.path": str(folder / "model")}
    values["trainer.n_gpus_per_node"] = world
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", [f"{key}={value}" for key, value in values.items()])
    validate_config(config, use_reference_policy=config.actor_rollout_ref.actor.use_kl_loss, use_critic=False)
    return config


def advantages(config: Any, rows: list[dict[str, Any]], mask: torch.Tensor) -> torch.Tensor:
    """[B, T] as verl's estimator makes them of the stored rewards."""
    rewards = torch.zeros_like(mask, dtype=torch.float32)
    for row, reward in zip(rows, rewards, strict=True):
        reward[len(row["response_tokens"]) - 1] = row["reward"]
    algorithm = config.algorithm
    estimator = core_algos.get_adv_estimator_fn(algorithm.adv_estimator)
    index = np.array([row["problem_id"] for row in rows], dtype=object)
    options = (
        {"norm_adv_by_std_in_grpo": algorithm.norm_adv_by_std_in_grpo} if algorithm.adv_estimator == "grpo" else {}
    )
    return estimator(token_level_rewards=rewards, response_mask=mask.float(), index=index, **options)[0]


def one_step(config: Any, rows: list[dict[str, Any]], rank: int, world: int) -> tuple[dict[str, torch.Tensor], Any]:
    """The weights after the step and verl's metrics; each rank takes its part of every mini-batch."""
    group, actor = config.actor_rollout_ref.rollout.n, config.actor_rollout_ref.actor
    size = actor.ppo_mini_batch_size * group
    own = [place for first in range(0, len(rows), size) for place in range(first + rank, first + size, world)]
    width = max(len(row["response_tokens"]) for row in rows)
    mask = torch.tensor([[place < len(row["response_tokens"]) for place in range(width)] for row in rows])
    padded = advantages(config, rows, mask)[own]
    chosen = [rows[place] for place in own]
    ids = [torch.tensor([*row["prompt_tokens"], *row["response_tokens"]]) for row in chosen]
    responses = jagged([torch.tensor(row["response_tokens"]) for row in chosen])
    response_mask = jagged([torch.ones(len(row["response_tokens"]), dtype=torch.int64) for row in chosen])
    data = TensorDict(
        {
            "input_ids": jagged(ids),
            "position_ids": jagged([torch.arange(len(tokens)) for tokens in ids]),
            "prompts": jagged([torch.tensor(row["prompt_tokens"]) for row in chosen]),
            "responses": responses,
            "response_mask": response_mask,
            "loss_mask": response_mask,
            "advantages": response_to_nested(padded, response_mask),
        },
        batch_size=len(chosen),
    )
    worker = ActorRolloutRefWorker(config=config.actor_rollout_ref, role="actor")
    worker.init_model()
    shared = {"temperature": config.actor_rollout_ref.rollout.temperature}
    asked = data.copy()
    tu.assign_non_tensor(asked, calculate_entropy=True, compute_loss=False, **shared)
    data["old_log_probs"] = response_from_nested(worker.compute_log_prob(asked)["log_probs"], response_mask)
    if actor.use_kl_loss:
        data["ref_log_prob"] = jagged([torch.tensor(row["ref_logprobs"]) for row in chosen])
    tu.assign_non_tensor(
        data,
        calculate_entropy=actor.calculate_entropy or actor.entropy_coeff != 0.0,
        global_batch_size=size,
        mini_batch_size=size,
        epochs=actor.ppo_epochs,
        seed=actor.data_loader_seed,
        dataloader_kwargs={"shuffle": actor.shuffle},
        **shared,
    )
    metrics = tu.get(worker.update_actor(data), "metrics")
    weights = {name: weight.clone() for name, weight in worker.actor.engine.get_per_tensor_param()[0]}
    return weights, {key: value for key, value in metrics.items() if key in ("loss", "grad_norm", "lr")}


def main(folder: Path, out: Path) -> None:
    torch.set_num_threads(1)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    # The worker would ask for the backends "cpu:gloo,cpu:gloo" and torch refuses to be told twice.
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    rows = json.loads((folder / "batch.json").read_text())
    found: dict[str, dict[str, Any]] = {}
    for name, case in json.loads((folder / "cases.json").read_text()).items():
        for setting in ("stock", "plugin"):
            if not case[setting] or (setting == "stock" and case["differences"]):
                continue
            weights, metrics = one_step(configured(folder, case, setting, world), rows, rank, world)
            found.setdefault(name, {})[setting] = metrics
            if rank == 0:
                (out / name).mkdir(parents=True, exist_ok=True)
                save_file(
                    {key: weight.contiguous() for key, weight in weights.items()}, out / name / f"{setting}.safetensors"
                )
    if rank == 0:
        (out / "metrics.json").write_text(json.dumps(found, default=str))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
