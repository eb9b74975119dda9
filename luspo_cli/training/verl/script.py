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
READY_TRIES, READY_PAUSE_S = 60, 5
_SRUN = 'srun --overlap --cpus-per-task "$SLURM_CPUS_ON_NODE"'
"""A step beside the others, with all cores of its nodes: without the number a task has one."""
_ON_FIRST = f'{_SRUN} --nodes 1 --ntasks 1 --nodelist "$first"'
_ONE_LIST = "env -u ROCR_VISIBLE_DEVICES"
"""SLURM may list a step's GPUs under the variables of two makers, which verl's workers refuse."""
_OWN_ADDRESS = (
    "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect((sys.argv[1], 9));"
    " print(s.getsockname()[0])"
)
"""Prints the address from which this host would send to another; nothing is sent."""
_WAIT_FOR_NODES = """\
wait_for_nodes() {{
    tries=0
    until [ "$({ray} status 2>/dev/null | sed -n '/^Active:/,/^Pending:/p' | grep -c ' node_')" -ge "$1" ]; do
        tries=$((tries + 1))
        if [ "$tries" -gt {tries} ]; then
            echo "Ray at $RAY_ADDRESS has no $1 nodes yet; RAY_HEAD_ADDRESS may name an address of $first that all reach" >&2
            exit 1
        fi
        sleep {pause}
    done
}}"""


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
        words = [f"{_ON_FIRST} {_ONE_LIST}", *words]
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
    """A Ray cluster over the nodes of the job: its head on the first, the others joined to it when it answers.

    The head's address is that of the card by which the first node reaches the last one. Its own name may lead to 127.0.1.1, and
    the first of its addresses may be that of a bridge.
    """
    ray = shlex.quote(str(python).removesuffix("python") + "ray") if python.endswith("/python") else "ray"
    gpus, others = config.verl.gpus_per_node, config.verl.nodes - 1
    yield 'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
    if others:
        asked = shlex.join([python, "-c", _OWN_ADDRESS])
        yield 'last=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | tail -n 1)'
        yield f'address=${{RAY_HEAD_ADDRESS:-$({_ON_FIRST} {asked} "$last")}}'
    else:
        yield "address=${RAY_HEAD_ADDRESS:-127.0.0.1}"
    yield f'export RAY_ADDRESS="$address:{RAY_PORT}"'
    # Ray 2.60 asks for a token where the user has one, and `ray status` does not give it unless told.
    secret = shlex.join([python, "-c", "import secrets; print(secrets.token_hex(32))"])
    yield f'export RAY_AUTH_MODE=token RAY_AUTH_TOKEN="${{RAY_AUTH_TOKEN:-$({secret})}}"'
    yield from _WAIT_FOR_NODES.format(ray=ray, tries=READY_TRIES, pause=READY_PAUSE_S).splitlines()
    yield (
        f'{_ON_FIRST} {_ONE_LIST} {ray} start --head --node-ip-address "$address" --port {RAY_PORT} --num-gpus {gpus}'
        " --include-dashboard false --block &"
    )
    yield "wait_for_nodes 1"
    if others:
        yield (
            f'{_SRUN} --nodes {others} --ntasks {others} --exclude "$first" {_ONE_LIST} {ray} start --address "$RAY_ADDRESS"'
            f" --num-gpus {gpus} --block &"
        )
        yield f"wait_for_nodes {others + 1}"
