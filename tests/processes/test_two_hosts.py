"""Whole runs over two hosts, which network namespaces make on one machine: the run of one process, and what follows a loss."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from reliability import host_faults

from doubles.hosts import Host, accelerate, ended, no_hosts, torchrun, two_hosts
from doubles.runs import as_arguments, assert_close, records, train
from luspo_cli.config.run import TrainRun

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(no_hosts()), reason=no_hosts() or "two hosts")]

LAUNCHERS: dict[str, Callable[[int, Host, int], list[str]]] = {"torchrun": torchrun, "accelerate": accelerate}


@pytest.mark.parametrize(
    ("launcher", "sharding", "each"), [("torchrun", "none", 1), ("torchrun", "full", 2), ("accelerate", "full", 1)]
)
def test_two_hosts_train_as_one_process(
    small_run: Callable[..., TrainRun], tmp_path: Path, launcher: str, sharding: str, each: int
) -> None:
    config = small_run(f"model.sharding={sharding}")
    train(config, tmp_path / "whole")
    arguments = as_arguments(config, tmp_path)
    with two_hosts() as hosts:
        launchers = [
            host.start(
                [sys.executable, "-m", *LAUNCHERS[launcher](number, hosts[0], each), "luspo_cli", *arguments],
                tmp_path / f"{host.name}.txt",
                {"OMP_NUM_THREADS": "1"},
            )
            for number, host in enumerate(hosts)
        ]
        ended(launchers, 300)
        said = [(tmp_path / f"{host.name}.txt").read_text() for host in hosts]
    assert [process.returncode for process in launchers] == [0, 0], said
    assert "done:" in said[0]
    assert "step" not in said[1]  # the first process of all speaks
    assert_close(tmp_path / "whole", tmp_path / "run", config.run.steps)
    hardware = json.loads((tmp_path / "run/provenance.json").read_text())["hardware"]
    assert (hardware["processes"], hardware["machines"]) == (2 * each, 2)


@pytest.mark.parametrize("fault", host_faults.FAULTS)
def test_a_loss_ends_all_within_a_bound_with_one_sentence_a_host(tmp_path: Path, fault: str) -> None:
    """And another number of processes goes on, on one host."""
    outcome = host_faults.provoke(fault, tmp_path)
    assert outcome.left == 0
    assert outcome.seconds < host_faults.BOUND_S
    assert all(outcome.statuses)
    wanted = host_faults.FAULTS[fault][1]
    gone = {"first host killed": "host1", "host killed": "host2"}.get(fault)
    living = [host for host in outcome.said if host != gone]
    assert all(len(outcome.sentences(host)) == 1 for host in living), outcome.said
    assert outcome.sentences(living[0])[0].startswith(f"luspo: {wanted}; the others stop")
    assert os.listdir(tmp_path / "run/checkpoints")
    steps = (tmp_path / "run/metrics.jsonl").read_bytes().count(b"\n")  # a torn line may follow
    with pytest.raises(ZeroDivisionError):
        train(host_faults.endless_run(), tmp_path / "run", "resume", crash_after=steps + 2)
    assert [record["step"] for record in records(tmp_path / "run")] == list(range(1, steps + 3))
