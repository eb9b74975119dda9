"""Whole `luspo train` runs on problems with images with the real vLLM: in the training process and on a server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from doubles.image_runs import image_run, image_run_folder
from doubles.runs import as_arguments, records, without_times
from luspo_cli.config.model import ModelConfig
from luspo_cli.config.run import TrainRun
from luspo_cli.policy.loading import load_model

pytestmark = pytest.mark.vllm
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/rollout/vllm"))

from vllm_models import served  # noqa: E402

CONTEXT = 256
MODEL: dict[str, Any] = {"scale": 2, "end": [1, *range(72, 104)], "spread": (0.2, 0.1)}
"""Heads of 32 numbers, as vLLM's kernels want them, a quarter of all tokens for ends, so that lengths differ; no sure draw."""
SETTINGS = ("update.sampler_correction=sequence", "run.steps=3")


def luspo_train(config: TrainRun, folder: Path, *more: str) -> None:
    """The command line, in a process of its own; the run is `folder`/run."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "luspo_cli", *as_arguments(config, folder), *more],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(ModelConfig(path=str(path))).model.state_dict())


def policy_folder(run: Path) -> Path:
    (found,) = (path for path in (run / "checkpoints/step-000003").iterdir() if path.name in ("model", "adapter"))
    return found


def follows(run: Path, largest: float = 1e-4, mean: float = 2e-5) -> None:
    """Every response token's log-prob of vLLM is the policy's in each step, though the policy moves."""
    found = records(run)
    assert [record["step"] for record in found] == [1, 2, 3]
    for record in found:
        shown = {key: record[key] for key in record if key.startswith("sampler/")}
        print(record["step"], shown)
        assert 0 < record["sampler/logprob_difference_mean"] < mean, shown
        assert record["sampler/logprob_difference_max"] < largest, shown
        assert record["sampler/effective_sample_size"] > 1 - mean, shown
        assert record.get("sampler/capped_fraction", 0.0) == 0.0
    assert found[0]["update/grad_norm"] > 0
    assert max(record.get("ratio/max", 1.0) for record in found) > 1.01  # the policy did move


@pytest.mark.parametrize(
    ("family", "sets", "parts"),
    [
        ("qwen2_5_vl", ("model.freeze_vision=false",), {"visual", "language_model"}),
        ("qwen3_vl", ("model.freeze_vision=false",), {"visual", "language_model"}),
        ("qwen2_5_vl", ("model.lora.rank=4", "update.learning_rate=1e-2"), {"language_model"}),
    ],
    ids=["whole", "qwen3-vl", "lora"],
)
def test_an_engine_follows_a_policy_that_sees(
    tmp_path: Path, family: str, sets: tuple[str, ...], parts: set[str]
) -> None:
    """Every row has an image: pixels to a tower that is pushed with the rest, or a frozen one's features."""
    pytest.importorskip("vllm")
    image_run_folder(tmp_path, bare=(), family=family, **MODEL)
    luspo_train(image_run(tmp_path, "rollout.sampler=vllm", *SETTINGS, *sets), tmp_path / "one")
    follows(tmp_path / "one/run")
    first, last = weights(tmp_path / "model"), weights(policy_folder(tmp_path / "one/run"))
    assert {name.split(".")[1] for name in first if not torch.equal(first[name], last[name])} - {"weight"} == parts


def test_in_bfloat16_the_difference_is_small_and_a_run_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    """Rows with and without images in one batch."""
    pytest.importorskip("vllm")
    image_run_folder(tmp_path, **MODEL)
    config = image_run(tmp_path, "rollout.sampler=vllm", "model.compute_dtype=bfloat16", *SETTINGS)
    luspo_train(config, tmp_path / "one")
    follows(tmp_path / "one/run", largest=0.4, mean=0.05)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    shutil.rmtree(tmp_path / "two/run/checkpoints/step-000003")
    luspo_train(config, tmp_path / "two", "--resume")
    assert without_times(tmp_path / "two/run") == without_times(tmp_path / "one/run")
    one, two = (weights(policy_folder(tmp_path / f"{name}/run")) for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_server_follows_a_policy_that_sees(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    image_run_folder(tmp_path, bare=(), **MODEL)
    with served(tmp_path / "model", CONTEXT, "--no-mm-device-do-normalize") as url:
        sets = ("rollout.sampler=vllm-server", f'rollout.vllm.servers=["{url}"]', *SETTINGS)
        for name, frozen in (("trained", "false"), ("frozen", "true")):
            luspo_train(image_run(tmp_path, *sets, f"model.freeze_vision={frozen}"), tmp_path / name)
            follows(tmp_path / f"{name}/run")
