"""A run that a real `srun` starts on two nodes, without torchrun: its places, its end, and what it leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from doubles.hosts import Host, ended, two_hosts
from doubles.runs import as_arguments, assert_close, train
from doubles.slurm import cluster, no_slurm
from luspo_cli.config.run import TrainRun

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(no_slurm()), reason=no_slurm() or "SLURM")]


def start(host: Host, variables: dict[str, str], folder: Path, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """A step of one process on each node; what it says goes to `said.txt`."""
    command = ["srun", "-N2", "-n2", sys.executable, "-m", "luspo_cli", *arguments]
    return host.start(command, folder / "said.txt", {**variables, "OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_srun_starts_the_processes_of_one_run(
    small_run: Callable[..., TrainRun], tmp_path: Path, sharding: str
) -> None:
    config = small_run(f"model.sharding={sharding}")
    train(config, tmp_path / "whole")
    arguments = as_arguments(config, tmp_path)
    (tmp_path / "slurm").mkdir()
    with two_hosts() as hosts, cluster(hosts, tmp_path / "slurm") as variables:
        step = start(hosts[0], variables, tmp_path, arguments)
        ended([step], 300)
    said = (tmp_path / "said.txt").read_text()
    assert step.returncode == 0, said
    assert said.count("done:") == 1
    assert_close(tmp_path / "whole", tmp_path / "run", config.run.steps)
    hardware = json.loads((tmp_path / "run/provenance.json").read_text())["hardware"]
    assert (hardware["processes"], hardware["machines"]) == (2, 2)


def test_a_killed_task_ends_the_step_on_both_nodes(small_run: Callable[..., TrainRun], tmp_path: Path) -> None:
    """Without --kill-on-bad-exit: each process ends by itself."""
    arguments = as_arguments(small_run("run.steps=100000", "evaluation.every=0"), tmp_path)
    (tmp_path / "slurm").mkdir()
    with two_hosts() as hosts, cluster(hosts, tmp_path / "slurm") as variables:
        step = start(hosts[0], variables, tmp_path, arguments)
        metrics, deadline = tmp_path / "run/metrics.jsonl", time.monotonic() + 300
        while not metrics.exists():
            assert step.poll() is None, (tmp_path / "said.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.kill(hosts[1].tasks()[1], signal.SIGKILL)
        assert ended([step], 120) < 60
        assert not [host for host in hosts if host.tasks()]
    said = (tmp_path / "said.txt").read_text()
    assert step.returncode != 0
    assert (
        "luspo: lost host2 with process 1 of 2 (ended or killed); the others stop. Every checkpoint is whole: go on"
        in said
    )
