"""The scripts of `luspo export-verl`, run by a shell with stand-ins for SLURM's and Ray's commands."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from luspo_cli.config.layers import resolve_train
from luspo_cli.training.verl.overrides import VerlFiles, verl_command
from luspo_cli.training.verl.script import READY_TRIES, script

STAND_INS = {
    "scontrol": r"printf 'node1\nnode2\n'",
    # A step: its options are written down, and what it runs is run here.
    "srun": r"""echo "srun $*" >> steps
while [ $# -gt 0 ]; do case $1 in --overlap) shift;; --*) shift 2;; *) break;; esac; done
exec "$@" """,
    "python": r"""case "$1 $2" in
*secrets*) echo token ;;
-c*) echo 10.0.0.7 ;;
*) printf '%s\n' "$@" > verl ;;
esac""",
    # One more node each time that it is asked, up to what `nodes` says; the failures below it are none.
    "ray": r"""case $1 in
start) echo "ray $*, token $RAY_AUTH_TOKEN" >> steps ;;
status) echo . >> asked; asked=$(wc -l < asked); most=$(cat nodes)
  echo Active:; for n in $(seq $((asked < most ? asked : most))); do echo " 1 node_$n"; done
  echo Pending:; echo ' (no pending nodes)'; echo 'Recent failures:'; echo ' node_9: gone' ;;
job) printf '%s\n' "$@" > submitted ;;
esac""",
    "sleep": "",
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the stand-ins in `bin`, for a cluster of two nodes."""
    (tmp_path / "bin").mkdir()
    for name, body in STAND_INS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "nodes").write_text("2")
    return tmp_path


def run(place: Path, form: str, *sets: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """The script of a preset in this form, run to its end, and the settings that it holds."""
    config = resolve_train(preset="qwen3-30b-a3b", sets=["run.engine=verl", *sets])
    command = verl_command(config, VerlFiles(Path("/it's {there}/verl")), name="x", problems=17000, ray_address="auto")
    file = place / "script"
    file.write_text(script(config, command, "python", form))  # type: ignore[arg-type]
    variables = {
        "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_CPUS_ON_NODE": "96",
    }
    shell = "bash" if form == "slurm" else "sh"
    done = subprocess.run([shell, str(file)], cwd=place, env=variables, capture_output=True, text=True, check=False)
    return done, ["-m", "verl.trainer.main_ppo", *command.overrides()]


def test_slurm_waits_for_the_head_and_for_the_others(place: Path) -> None:
    done, settings = run(place, "slurm")
    assert done.returncode == 0, done.stderr
    steps = (place / "steps").read_text()
    head, others = (re.search(f"ray start {which}.*", steps) for which in ("--head", "--address"))
    assert head is not None
    assert "--node-ip-address 10.0.0.7 --port 6379 --num-gpus 8" in head[0]
    assert steps.count("--block, token token") == 2
    assert others is not None
    assert others[0].startswith("ray start --address 10.0.0.7:6379 --num-gpus 8")
    assert "--nodes 1 --ntasks 1 --exclude node1" in steps
    assert steps.count("env -u ROCR_VISIBLE_DEVICES") == 3  # both of Ray's, and verl
    assert steps.count("--cpus-per-task 96") == 4  # the address, the head, the other node, verl
    assert (place / "asked").read_text().count(".") == 2  # one node at once, the second at the next look
    assert (place / "verl").read_text().splitlines() == settings


def test_a_cluster_that_does_not_come_ends_the_job_with_a_sentence(place: Path) -> None:
    (place / "nodes").write_text("1")
    done, _ = run(place, "slurm")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Ray at 10.0.0.7:6379 has no 2 nodes yet; RAY_HEAD_ADDRESS may name")
    assert (place / "asked").read_text().count(".") == READY_TRIES + 2
    assert not (place / "verl").exists()


def test_one_node_needs_no_address_of_its_own(place: Path) -> None:
    (place / "nodes").write_text("1")
    done, _ = run(place, "slurm", "verl.nodes=1", "verl.megatron.expert_parallel=4")
    assert done.returncode == 0, done.stderr
    assert "--node-ip-address 127.0.0.1" in (place / "steps").read_text()


def test_a_ray_job_is_the_command_word_for_word(place: Path) -> None:
    done, settings = run(place, "ray-job")
    assert done.returncode == 0, done.stderr
    submitted = (place / "submitted").read_text().splitlines()
    assert submitted == ["job", "submit", "--address", "http://127.0.0.1:8265", "--", "python", *settings]
