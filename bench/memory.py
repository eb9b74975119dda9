"""Peak memory of two training steps beside the dry run's estimate, each case in a process of its own.

    python bench/memory.py                                   # a random model of 60 M parameters
    python bench/memory.py --vision                          # one of the class Qwen2.5-VL, 73 M, on images of 256 tokens
    python bench/memory.py --model FOLDER [--preload LIBRARY] [--cases "full / lora"]

Two steps, because the moments come with the first, and as large as the configuration allows, as the estimate assumes: at a high
temperature every response runs to its limit, and rows without advantage are not left out. Measured is the largest resident size
of the process and, on a GPU, the most memory that torch had allocated there.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from made_images import make_model, make_problems
from shared.models import random_model
from shared.options import wrong_set

from luspo_cli.config.layers import resolve_train
from luspo_cli.config.model import ShapeConfig, VisionShapeConfig
from luspo_cli.config.run import TrainRun
from luspo_cli.evaluation.sampling import choose_dtype
from luspo_cli.training.dry_run import make_plan

CASES: dict[str, list[str]] = {
    "full": [],
    "full, checkpointing": ["model.gradient_checkpointing=true"],
    "full, nothing spared": ["update.spare_memory=false"],
    "full, bfloat16 moments": ["update.moments=bfloat16"],
    "full, 8-bit moments": ["update.moments=8bit"],
    "lora": ["model.lora.rank=16"],
    "lora, checkpointing": ["model.lora.rank=16", "model.gradient_checkpointing=true"],
    "full, offload": ["update.offload_optimizer=true"],
}
VISION_CASES: dict[str, list[str]] = {
    **{name: CASES[name] for name in ("full", "full, checkpointing")},
    "tower frozen": ["model.freeze_vision=true"],
    **{name: CASES[name] for name in ("lora", "lora, checkpointing")},
}
IMAGE_SIDE = 448
VISION = ShapeConfig(
    vocabulary=32000,
    layers=6,
    width=512,
    heads=8,
    key_value_heads=2,
    feed_forward=2048,
    vision=VisionShapeConfig(depth=8, width=384, heads=6, feed_forward=1024, full_attention=(3, 7)),
)
STEP = [
    "rollout.problems=2", "rollout.group_size=8", "rollout.max_response_tokens=256", "rollout.temperature=20.0",
    "data.max_prompt_tokens=128", "update.mini_batches=1", "update.tokens_per_micro_batch=4096",
    "update.skip_rows_without_advantage=false", "update.noise_floor_every=0", "evaluation.every=0",
    "data.held_out=", "run.steps=2", "run.checkpoint_every=0", "run.rollouts_every=0",
]  # fmt: skip
VISION_STEP = [
    f"data.max_pixels={IMAGE_SIDE**2}", f"data.min_pixels={IMAGE_SIDE**2}", "data.max_prompt_tokens=320", "rollout.group_size=4",
    "rollout.max_response_tokens=32", "update.tokens_per_micro_batch=2048",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model folder; without it a random one is made")
    parser.add_argument("--preload", help="an allocator's shared library (docs/engine.md)")
    parser.add_argument("--vision", action="store_true", help="a model that reads images, and problems with one each")
    parser.add_argument(
        "--cases", help=f"separated by /: {' / '.join(CASES)}; with --vision {' / '.join(VISION_CASES)}"
    )
    parser.add_argument("--set", dest="sets", action="append", default=[], help="a key on top of the step's")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure(json.loads(options.one))
        return
    if reason := wrong_set(options.sets):
        parser.error(reason)
    import torch

    cases = VISION_CASES if options.vision else CASES
    chosen = [name.strip() for name in options.cases.split("/")] if options.cases else list(cases)
    if unknown := [name for name in chosen if name not in cases]:
        parser.error(f"--cases: there is no {', '.join(unknown)}; there are {' / '.join(cases)}")
    if not torch.cuda.is_available():
        chosen = [name for name in chosen if name != "full, offload"]
    environment = {**os.environ, **({"LD_PRELOAD": options.preload} if options.preload else {})}
    columns = ("estimate", "measured", "ratio", "on the GPU", "ratio")
    print(f"{'case':<24}" + "".join(f"{column:>12}" for column in columns) + "   (GiB)", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        made, data = Path(folder) / "model", Path(folder) / "data"
        step = [f"model.compute_dtype={choose_dtype('auto', None)}", *STEP]
        if options.vision:
            if not options.model:
                make_model(made, VISION, "bfloat16")
            make_problems(data, 8, IMAGE_SIDE, IMAGE_SIDE)
            step += VISION_STEP
        else:
            if not options.model:
                random_model(made)
            prepare = [sys.executable, "-m", "luspo_cli", "prepare-data", "arithmetic", "--size", "64"]
            subprocess.run([*prepare, "--out", str(data)], check=True, capture_output=True)
        model = options.model or made
        for number, name in enumerate(chosen):
            sets = [f"model.path={model}", f"data.train={data}", *step, *cases[name], *options.sets]
            task = {"sets": sets, "run": str(Path(folder) / f"run{number}")}
            done = subprocess.run(
                [sys.executable, __file__, "--one", json.dumps(task)], env=environment, capture_output=True, text=True
            )
            if done.returncode:
                print(f"{name:<24}  failed: {(done.stderr.strip().splitlines() or ['no word'])[-1]}", flush=True)
                continue
            print(row(name, configuration(sets), json.loads(done.stdout.splitlines()[-1])), flush=True)


def configuration(sets: list[str]) -> TrainRun:
    return resolve_train(preset="qwen2.5-0.5b", objective="luspo", sets=sets)


def row(name: str, config: TrainRun, found: dict[str, float]) -> str:
    """One line: the larger of the two estimated peaks, the process's peak and the GPU's."""
    memory = make_plan(config).memory_gib
    estimate = max(memory["update_peak"], memory["rollout_peak"])
    line = f"{name:<24}{estimate:>12.2f}{found['resident']:>12.2f}{found['resident'] / estimate:>12.2f}"
    if found["gpu"]:
        on_gpu = estimate - memory["program"]
        line += f"{found['gpu']:>12.2f}{found['gpu'] / on_gpu:>12.2f}"
    return line


def measure(task: dict[str, Any]) -> None:
    """Train the steps and print the peaks in GiB as JSON."""
    import torch

    from luspo_cli.training.session import run_training

    torch.set_num_threads(min(2, os.cpu_count() or 1))
    run_training(configuration(task["sets"]), Path(task["run"]), "refuse", lambda _: None)
    gpu = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"resident": resident, "gpu": gpu}))


if __name__ == "__main__":
    main()
