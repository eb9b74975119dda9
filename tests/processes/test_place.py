"""Where a process stands among those of its run: what torchrun, accelerate, SLURM and luspo's own launcher say."""

from __future__ import annotations

import pytest

from luspo_cli.errors import UsageError
from luspo_cli.processes.place import Place, first_host, is_first_process, read_place

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node7", "MASTER_PORT": "29511"}
SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_NODELIST": "gpu[003-004]",
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
}


def test_alone() -> None:
    assert read_place({}) is None
    assert read_place({"SLURM_JOB_ID": "7", "RANK": "0"}) is None
    assert is_first_process({})


def test_torchrun_and_accelerate() -> None:
    assert read_place(TORCHRUN) == Place(3, 8, 1, "node7", 29511)
    assert not is_first_process(TORCHRUN)
    assert is_first_process({**TORCHRUN, "RANK": "0"})


def test_a_step_of_slurm() -> None:
    assert read_place(SRUN) == Place(5, 8, 1, "gpu003", 15000 + 123456 % 17000)
    assert read_place({**SRUN, "MASTER_ADDR": "here", "MASTER_PORT": "4000"}) == Place(5, 8, 1, "here", 4000)
    assert read_place({**TORCHRUN, **SRUN}) == read_place(
        TORCHRUN
    )  # torchrun started by srun: the inner launcher counts


def test_two_steps_of_one_job_meet_at_two_ports() -> None:
    ports = {read_place({**SRUN, "SLURM_STEP_ID": str(step)}).port for step in range(10)}  # type: ignore[union-attr]
    assert len(ports) == 10
    assert all(15000 <= port < 32000 for port in ports)


def test_a_batch_script_of_slurm_is_one_process() -> None:
    """It has the number of tasks in its environment and no step: waiting for the others would be for ever."""
    script = {name: value for name, value in SRUN.items() if not name.startswith("SLURM_STEP")}
    assert read_place({**script, "SLURM_PROCID": "0"}) is None
    assert read_place({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}) is None


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("node[003-006,008],gpu1", "node003"),
        ("node[8,3]", "node8"),
        ("rack[1-2]n[07-09].site,other", "rack1n07.site"),
        ("a[1-3]-ib", "a1-ib"),
        ("", ""),
    ],
)
def test_the_first_host_of_a_node_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK is 'x', which is no number"),
        ({name: value for name, value in SRUN.items() if name != "SLURM_PROCID"}, "SLURM_PROCID is not set"),
    ],
)
def test_half_a_place(environment: dict[str, str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        read_place(environment)


def test_a_place_tells_itself() -> None:
    place = Place(2, 3, 2, "127.0.0.1", 1234)
    assert read_place(place.variables()) == place
