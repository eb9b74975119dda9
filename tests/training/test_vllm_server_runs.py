"""Whole runs of two processes that share one real vLLM server: one of them pushes, both draw what the policy says."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from doubles import rank_cases
from doubles.processes import run_processes
from doubles.runs import assert_same_records, records
from luspo_cli.config.run import TrainRun

pytestmark = pytest.mark.vllm
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "rollout/vllm"))

from vllm_models import served  # noqa: E402

CONTEXT = 128
# vLLM's CPU kernels want heads of 32 numbers.
SHAPE = ("model.shape.width=64", "model.shape.heads=2", "model.shape.feed_forward=64")
SETTINGS = (
    "rollout.sampler=vllm-server",
    "data.max_prompt_tokens=96",
    "update.sampler_correction=sequence",
    "run.steps=2",
)


def test_two_processes_and_one_server_give_the_run_of_one_process(
    small_run: Callable[..., TrainRun], tmp_path: Path
) -> None:
    """Whole and sharded; the policy that draws is the policy that is trained in each step."""
    pytest.importorskip("vllm")
    from luspo_cli.training.made.model import made_model

    shutil.copytree(made_model(small_run(*SHAPE)), tmp_path / "model")
    with served(tmp_path / "model", CONTEXT) as url:
        for processes, sharding in ((1, "none"), (2, "none"), (2, "full")):
            config = small_run(*SHAPE, *SETTINGS, f'rollout.vllm.servers=["{url}"]', f"model.sharding={sharding}")
            path = tmp_path / f"{processes} {sharding}"
            path.mkdir()
            run_processes(processes, rank_cases.run_session, config.model_dump_json(), path, 0)
            said = [(path / f"said-{rank}.txt").read_text() for rank in range(processes)]
            found = records(path)
            assert [record["step"] for record in found] == [1, 2], said
            assert all(record["sampler/logprob_difference_max"] < 1e-4 for record in found)
            assert max(record["ratio/max"] for record in found) > 1.001  # the policy did move
            assert_same_records(path, tmp_path / "1 none")
