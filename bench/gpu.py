"""What a CUDA device does with Qwen2.5's shapes at 0.5B and 7B, in one command without network: rollout, update, memory, step.

    python -m bench gpu [--model FOLDER] [--out FOLDER] [--parts ...]
    python -m bench gpu --smoke                 # the same commands at the smallest sizes, on the CPU where there is no GPU

Runs the other benchmarks, each as it could be called alone, once, with `--gpu`; made for 8 minutes on an H100. Weights are
random unless a folder is given. 7B is trained through adapters: its float32 weights, gradients and moments are 122 GB. Of the
update, `of the GEMM peak` is the model FLOP/s utilisation. JSON and tables lie in `--out`; called again it goes on.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

from shared.models import random_model
from step import LIGER, TRICKS

from luspo_cli.machine import has_cuda
from luspo_cli.policy.model_files import liger_missing
from luspo_cli.rollout.samplers import vllm_is_installed

LORA = ("--set", "model.lora.rank=16")
ROLLOUT = ("rollout", "--rows", "64", "256", "--tokens", "256", "--group-size", "8")
UPDATE = ("update", "--prompts", "8", "--prompt-tokens", "128", "--tokens", "512", "--micro-tokens", "16384")
STEP = ("step", "--sides", "luspo", "--modes", "natural", "mixed", "--tricks", "--problems", "16", "--tokens", "512")
KERNELS = [name for name, trick in TRICKS.items() if trick.on and not (name == LIGER and liger_missing())]
"""Those that are off until they were measured (`model.kernels`), each on and off."""
PARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "0.5b-rollout": ("0.5b", ROLLOUT),
    "0.5b-update": ("0.5b", UPDATE),
    "0.5b-step": ("0.5b", STEP),
    "loss-memory": ("", ("loss_memory", "--lengths", "2048", "16384", "--vocabularies", "151936", "--width", "3584")),
    "0.5b-kernels": (
        "0.5b",
        ("step", "--sides", "luspo", "--modes", "--problems", "8", "--tokens", "256", "--tricks", *KERNELS),
    ),
    "7b-rollout": ("7b", ROLLOUT),
    "7b-update": ("7b", (*UPDATE, "--sides", "luspo", *LORA)),
}
"""Name → size of the model ("": none) and the benchmark with its options."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model folder in the place of the random one of 0.5B")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("runs/bench-gpu"))
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes")
    options = parser.parse_args()
    on_gpu = has_cuda()
    if not (on_gpu or options.smoke):
        sys.exit(
            "bench gpu: torch finds no CUDA device; --smoke runs the same commands at the smallest sizes on the CPU"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    began, failed = time.perf_counter(), []
    for name in options.parts:
        command = command_of(name, options, on_gpu)
        print(f"\n# {name} at {time.perf_counter() - began:.0f} s: {' '.join(command[1:])}\n", flush=True)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        (options.out / f"{name}.md").write_text(done.stdout, encoding="utf-8")
        print(done.stdout, flush=True)
        failed += [name] if done.returncode else []
    print(f"{time.perf_counter() - began:.0f} s in all; tables and JSON in {options.out}")
    if failed:
        sys.exit(f"bench gpu: failed: {', '.join(failed)}")


def command_of(name: str, options: argparse.Namespace, on_gpu: bool) -> list[str]:
    """The call of a part; makes its model where it is random and not there yet."""
    size, benchmark = PARTS[name]
    command = [sys.executable, "-m", "bench", *benchmark, "--json", str(options.out / f"{name}.json"), "--repeats", "1"]
    command += ["--gpu"] if on_gpu else []
    if options.smoke:
        command.append("--smoke")
    elif size:
        command += ["--model", options.model if options.model and size != "7b" else _made(options.out, size)]
    if benchmark[0] == "rollout":
        systems = ["in-process", "generate", "continuous", *["vllm"] * vllm_is_installed()]
        command += ["--only", *(systems if size != "7b" else [system for system in systems if system != "continuous"])]
    return command


def _made(out: Path, size: str) -> str:
    """A random model beside the tables: two parts of one size share it, and of another size it is made again."""
    for other in out.glob("model-*"):
        if other.name != f"model-{size}":
            shutil.rmtree(other)  # 15 GB of random numbers
    folder = out / f"model-{size}"
    if not (folder / "config.json").is_file():
        random_model(folder, size)
    return str(folder)


if __name__ == "__main__":
    main()
