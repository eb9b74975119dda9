"""The command of a run in verl as text: what `--dry-run` prints and `luspo export-verl` writes; plain, for SLURM or a Ray job."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Literal

from luspo_cli.config.run import TrainRun
from luspo_cli.training.verl.overrides import MAIN, VerlCommand

Form = Literal["bash", "slurm", "ray-job"]
FORMS: tuple[Form, ...] = ("bash", "slurm", "ray-job")
RAY_PORT = 6379
DASHBOARD = "http://127.0.0.1:8265"


def arguments(command: VerlCommand, python: str) -> list[str]:
    """The command line that starts the run."""
    return [python, "-m", MAIN, *command.overrides()]


def script(config: TrainRun, command: VerlCommand, python: str, form: Form, notes: Sequence[str] = ()) -> str:
    """A shell script, one setting a line; `notes` stand above it as comments."""
    head = "#!/bin/bash" if form == "slurm" else "#!/bin/sh"
    lines = [head, *(_slurm_options(config) if form == "slurm" else ())]
    lines += [f"# {note}" for note in (*notes, *command.remarks)]
    lines.append("set -eu")
    if form == "slurm":
        lines += _ray_by_slurm(config, python)
    words = list(map(shlex.quote, arguments(command, python)))
    if form == "slurm":
        words = ['srun --overlap --nodes 1 --ntasks 1 --nodelist "$first"', *words]
    elif form == "ray-job":
        words = [f'ray job submit --address "${{RAY_ADDRESS:-{DASHBOARD}}}" --', *words]
    start = next(place for place, word in enumerate(words) if word == MAIN) + 1
    return "\n".join([*lines, " \\\n    ".join([" ".join(words[:start]), *words[start:]])]) + "\n"


def _slurm_options(config: TrainRun) -> Iterator[str]:
    yield f"#SBATCH --job-name=luspo-{config.objective.name}"
    yield f"#SBATCH --nodes={config.verl.nodes}"
    yield "#SBATCH --ntasks-per-node=1"
    yield f"#SBATCH --gpus-per-node={config.verl.gpus_per_node}"
    yield "#SBATCH --exclusive"


def _ray_by_slurm(config: TrainRun, python: str) -> Iterator[str]:
    """A Ray cluster over the nodes of the job: its head on the first, the others joined to it."""
    ray = shlex.quote(str(python).removesuffix("python") + "ray") if python.endswith("/python") else "ray"
    gpus = config.verl.gpus_per_node
    yield 'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
    yield 'address=$(srun --overlap --nodes 1 --ntasks 1 --nodelist "$first" hostname --ip-address | cut -d " " -f 1)'
    yield (
        f'srun --overlap --nodes 1 --ntasks 1 --nodelist "$first" {ray} start --head --node-ip-address "$address"'
        f" --port {RAY_PORT} --num-gpus {gpus} --block &"
    )
    yield "sleep 20"
    if config.verl.nodes > 1:
        yield (
            f'srun --overlap --nodes {config.verl.nodes - 1} --ntasks {config.verl.nodes - 1} --exclude "$first" {ray} start'
            f' --address "$address:{RAY_PORT}" --num-gpus {gpus} --block &'
        )
        yield "sleep 20"
    yield f'export RAY_ADDRESS="$address:{RAY_PORT}"'
